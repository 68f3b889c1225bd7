"""stub"""
CLAIMS = ()

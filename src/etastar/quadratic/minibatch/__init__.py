"""Least squares on fresh mini-batches: gradient noise that depends on the state, in closed form and simulated.

``noise`` says what the noise is, ``stability`` when a step has a stationary state and which, ``curve`` the expected
run, ``runs`` and ``batches`` simulate Gaussian rows and real data, ``sharpness`` has what batches see of the curvature.
"""

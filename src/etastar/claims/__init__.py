"""The paper's claims as executable statements, and the search that proves or refutes them."""

from etastar.claims.certificate import Counterexample, Lift, Verdict
from etastar.claims.check import Check, check_file
from etastar.claims.claim import Claim
from etastar.claims.registry import CLAIMS
from etastar.claims.search import audit

__all__ = ["CLAIMS", "Check", "Claim", "Counterexample", "Lift", "Verdict", "audit", "check_file"]

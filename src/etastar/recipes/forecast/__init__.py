"""The decay forecast put to the test: forecasts along a run, beside the loss drops that really come.

At each checkpoint the forecast is made from the checkpoint alone. Then copies of the network really take the decayed
steps, several times with different batches, and the run goes on as if nothing had happened.
"""

from etastar.recipes.forecast.run import WITHIN, CheckpointForecast, ForecastPlan, ForecastRun, forecast_decay
from etastar.recipes.forecast.section import forecast_section

__all__ = ["WITHIN", "CheckpointForecast", "ForecastPlan", "ForecastRun", "forecast_decay", "forecast_section"]

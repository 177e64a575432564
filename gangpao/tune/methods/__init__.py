"""Methods of tuning: what is put into a model and trained while the rest is frozen. `apply` is the way in, `METHODS` the table."""

from gangpao.tune.methods.apply import Applied, apply
from gangpao.tune.methods.config import MethodConfig
from gangpao.tune.methods.table import LEFT_OUT, METHODS

__all__ = ["LEFT_OUT", "METHODS", "Applied", "MethodConfig", "apply"]

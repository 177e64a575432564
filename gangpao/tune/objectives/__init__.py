"""What a tuned model is taught by: objectives of the one training loop (gangpao.train.loop.Objective).

`config.py` the options; `losses.py` the formulas, log-probabilities in and losses out; `logps.py` log-probabilities of the
answers in packed rows; `reference.py` what the model said before; `preferences.py` DPO, IPO, SimPO, ORPO and KTO; `policy.py`
GRPO, whose answers come from `rollouts.py` and whose rewards from `rewards.py`; `build.py` a configuration -> an objective.
"""

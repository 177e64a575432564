"""TRL 1.16.0's own losses on given log-probabilities: its trainers without a model, a data set or an accelerator.

A trainer is made without its __init__ and gets only what its loss reads; the model is a function that says the log-probabilities.
"""

import collections
import warnings
from types import SimpleNamespace

import torch

VERSION = "1.16.0"


class Accelerator:
    device = torch.device("cpu")
    num_processes = 1
    sync_gradients = True

    def gather(self, x):
        return x

    gather_for_metrics = gather

    def reduce(self, x, reduction="sum"):
        return x

    def unwrap_model(self, model):
        return model


def bare(cls, **fields):
    """A trainer with these attributes and nothing else."""
    trainer = cls.__new__(cls)
    metrics = {"train": collections.defaultdict(list)}
    usual = {"accelerator": Accelerator(), "_metrics": metrics, "aux_loss_enabled": False, "_tp_size": 1}
    for name, value in {**usual, "_total_train_tokens": 0, **fields}.items():
        object.__setattr__(trainer, name, value)
    return trainer


class Saying:
    """A model that says given log-probabilities [B, T - 1] of the tokens, whatever it is asked."""

    training = True

    def __init__(self, logps):
        self.logps = logps

    def __call__(self, labels=None, **_):
        logps = torch.where(labels[:, 1:] == -100, 0.0, self.logps)
        return SimpleNamespace(
            log_probs=logps,
            entropy=torch.zeros_like(logps),
            mean_logits=torch.zeros_like(logps),
            is_top1=torch.zeros_like(logps, dtype=torch.bool),
        )


def dpo(logps, before, mask, *, kind="sigmoid", beta=0.1, label_smoothing=0.0):
    """DPOTrainer's loss. logps [2P, T - 1] with the chosen first; before [2P] whole answers; mask [2P, T]. (loss, its metrics)"""
    from trl.trainer.dpo_trainer import DPOTrainer

    trainer = bare(
        DPOTrainer,
        model=Saying(logps),
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
    )
    chosen, rejected = before.chunk(2)
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    return trainer._compute_loss(trainer.model, inputs, False), trainer._metrics["train"]


def kto(logps, before, kl_logps, kl_before, mask, desirable, *, beta=0.1, weights=(1.0, 1.0)):
    """KTOTrainer's loss. logps, kl_logps [S, T - 1]; before, kl_before [S]; mask [S, T]. (loss, its metrics)"""
    from trl.trainer.kto_trainer import KTOTrainer

    said = iter([kl_logps, logps])  # the order in which it asks

    class Two(Saying):
        def __call__(self, **arguments):
            self.logps = next(said)
            return super().__call__(**arguments)

    trainer = bare(
        KTOTrainer,
        model=Two(None),
        precompute_ref_logps=True,
        loss_type="kto",
        calculate_KL=True,
        beta=beta,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
    )
    ones = torch.ones_like(mask)
    inputs = {
        **dict.fromkeys(("input_ids", "attention_mask", "KL_input_ids", "KL_attention_mask"), ones),
        "completion_mask": mask,
        "KL_completion_mask": mask,
        "label": desirable,
        "ref_logps": before,
        "ref_KL_logps": kl_before,
    }
    return trainer._compute_loss(trainer.model, inputs, False), trainer._metrics["train"]


def simpo(chosen, rejected, *, beta, gamma, label_smoothing=0.0):
    """CPOTrainer's losses [P] of mean log-probabilities [P]."""
    trainer_of, _ = experimental()
    trainer = bare(
        trainer_of, loss_type="simpo", alpha=0.0, beta=beta, simpo_gamma=gamma, label_smoothing=label_smoothing
    )
    return trainer.cpo_loss(chosen, rejected)[0]


def experimental():
    """CPOTrainer and ORPOTrainer, which warn that they are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.cpo.cpo_trainer import CPOTrainer
        from trl.experimental.orpo.orpo_trainer import ORPOTrainer
    return CPOTrainer, ORPOTrainer


def orpo(logits, ids, answer, *, beta):
    """ORPOTrainer's loss of a batch. logits [2P, T, V] with the chosen first; ids [2P, T]; answer [2P, T], -100 outside answers."""
    _, trainer_of = experimental()
    trainer = bare(
        trainer_of,
        beta=beta,
        is_encoder_decoder=False,
        padding_value=0,
        args=SimpleNamespace(),
        label_pad_token_id=-100,
    )
    pairs = len(ids) // 2
    batch = {"chosen_labels": answer[:pairs], "rejected_labels": answer[pairs:]}
    whole = {
        "concatenated_input_ids": ids,
        "concatenated_attention_mask": torch.ones_like(ids),
        "concatenated_labels": answer,
    }
    trainer.concatenated_inputs = lambda *_, **__: whole
    loss, metrics = trainer.get_batch_loss_metrics(lambda *_, **__: SimpleNamespace(logits=logits), batch)
    return loss, metrics


def grpo(
    logps, old, before, mask, advantages, *, average, beta=0.0, low=0.2, high=0.2, delta=None, ratio="token", most=8
):
    """GRPOTrainer's loss. logps, old, before, mask [S, T]; advantages [S]. (loss, its metrics)"""
    from trl.trainer.grpo_trainer import GRPOTrainer

    trainer = bare(
        GRPOTrainer,
        model=SimpleNamespace(training=True),
        beta=beta,
        loss_type=average,
        epsilon_low=low,
        epsilon_high=high,
        importance_sampling_level=ratio,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        max_completion_length=most,
        current_gradient_accumulation_steps=1,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        args=SimpleNamespace(delta=delta, steps_per_generation=1, use_bias_correction_kl=False),
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, torch.zeros_like(logps), None),
    )
    ones = torch.ones_like(mask)
    inputs = {
        "prompt_ids": ones[:, :1],
        "prompt_mask": ones[:, :1],
        "completion_ids": ones,
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": before,
        "num_items_in_batch": mask.sum(),
    }
    return trainer._compute_loss(trainer.model, inputs), trainer._metrics["train"]

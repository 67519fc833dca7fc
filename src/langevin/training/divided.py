"""What accelerate's configuration asks of weights that processes divide among themselves, read before a run is made.

`accelerate launch` tells the processes that it starts through variables. Those of FSDP (Zhao et al. 2023, 2304.11277)
and those of DeepSpeed's ZeRO stages 2 and 3 (Rajbhandari et al. 2020, 1910.02054) ask for the same thing, a share of
weights, gradients and the optimizer's state for every process; `sharded` does it, for both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..core.errors import ConfigError

FLAGS = {
    "DeepSpeed": "ACCELERATE_USE_DEEPSPEED",
    "FSDP": "ACCELERATE_USE_FSDP",
    "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM",
    "a parallelism_config": "ACCELERATE_USE_PARALLELISM_CONFIG",
}
"""What divides weights among processes -> the variable by which accelerate tells the processes that it starts."""
DONE = ("DeepSpeed", "FSDP")
FREED = {"true", "full_shard", "1"}
"""What says that a block's weights are let go of between its forward and its backward pass."""
HELD = {"false", "shard_grad_op", "2"}
"""What says that they are held."""
POLICIES = ("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP")
FSDP_ONLY = {
    "FSDP_STATE_DICT_TYPE": ("full_state_dict", "sharded_state_dict", "1", "3"),
    "FSDP_BACKWARD_PREFETCH": ("backward_pre", "1"),
    "FSDP_FORWARD_PREFETCH": ("false",),
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": ("false",),
    "FSDP_IGNORED_MODULES": (),
    "ACCELERATE_DYNAMO_BACKEND": ("no",),
}
"""Variable of FSDP -> the values that change nothing here, the first of which is the cure for others.

Files are whole whatever the type of the state dictionary is, and the next block is gathered during the backward pass of
a block. `FSDP_USE_ORIG_PARAMS`, `FSDP_SYNC_MODULE_STATES` (always done) and `FSDP_CPU_RAM_EFFICIENT_LOADING` (every
process loads, of which the launcher's own default says the contrary) are not looked at.
"""
ZERO = "ACCELERATE_DEEPSPEED_"
ZERO_ONLY = {
    f"{ZERO}OFFLOAD_OPTIMIZER_DEVICE": ("cpu", "none"),
    f"{ZERO}OFFLOAD_PARAM_DEVICE": ("cpu", "none"),
    f"{ZERO}ZERO3_INIT": ("false",),
    f"{ZERO}ZERO3_SAVE_16BIT_MODEL": ("false",),
    f"{ZERO}CONFIG_FILE": (),
    f"{ZERO}MOE_LAYER_CLS_NAMES": (),
    "ACCELERATE_DYNAMO_BACKEND": ("no",),
}
"""The same for DeepSpeed; weights are written in float32, and loaded whole by every process."""


@dataclass(frozen=True)
class Division:
    """How weights are divided.

    Attributes:
        asked: what asks for it, for messages.
        instead: what does it in place of that, if something else does.
        freed: whether a block's weights are let go of between its forward and its backward pass.
        offload: whether shares lie in the memory of the processor, where the optimizer then works.
        classes: names of the classes whose modules are gathered as one; None takes the blocks of the networks, and no
            name at all gathers every network as a whole.
        least: in place of that, modules of at least that many parameters are.
        checkpointing: whether activations are computed twice.
        accumulated: batches per step that the configuration names, if it does.
        clipping: the longest gradient that it names, if it does.
    """

    asked: str
    instead: str = ""
    freed: bool = True
    offload: bool = False
    classes: tuple[str, ...] | None = None
    least: int | None = None
    checkpointing: bool = False
    accumulated: int | None = None
    clipping: float | None = None

    def check(self, *, accumulated: int, clipping: float | None) -> None:
        """Raise ConfigError where a run does something else than the configuration says.

        Args:
            accumulated: batches per step of the run.
            clipping: the longest gradient of the run, None for any.
        """
        for flag, name, own, named in (
            ("gradient_accumulation_steps", "gradient_accumulation_steps", accumulated, self.accumulated),
            ("max_grad_norm", "gradient_clipping", clipping, self.clipping),
        ):
            if named is not None and named != own:
                raise ConfigError(
                    f"{self.asked}: accelerate's configuration has {name}={named}, and the run {flag}={own}; pass "
                    f"--{flag}={named}, or leave {name} out of the configuration."
                )

    def untrained(self, optimizer: str, others: str) -> ConfigError:
        """Return the error that an optimizer needs whole parameters, and others do not."""
        return ConfigError(
            f"{optimizer} cannot train weights that are divided ({self.asked}): it needs whole parameters. These can "
            f"do with a share: {others}."
        )


def asked() -> Division | None:
    """Return how accelerate is configured to divide weights, None where every process is to have all.

    Raises:
        ConfigError: for what is asked and not done; names all of it.
    """
    found = [name for name, flag in FLAGS.items() if said(flag)]
    for name in found:
        if name not in DONE:
            raise ConfigError(
                f"accelerate is configured for {name}, which recipes do not do. They divide weights among processes by "
                "FSDP (`accelerate config`, or `accelerate launch --use_fsdp`); see docs/training.md."
            )
    if len(found) > 1:
        raise ConfigError("accelerate is configured for DeepSpeed and FSDP at once; leave one of them out.")
    return {"FSDP": by_fsdp, "DeepSpeed": by_deepspeed}[found[0]]() if found else None


def by_fsdp() -> Division:
    """Return what the variables of FSDP say, of version 1 or 2; both are done by torch's `fully_shard`."""
    version = os.environ.get("FSDP_VERSION", "1")
    wrong = refused(FSDP_ONLY)
    if version not in ("1", "2"):
        wrong.append(f"FSDP_VERSION={version} (1 or 2)")
    names = ["FSDP_RESHARD_AFTER_FORWARD", *(["FSDP_SHARDING_STRATEGY"] if version == "1" else [])]
    spoken = {name: os.environ[name].lower() for name in names if os.environ.get(name)}
    wrong += [f"{name}={os.environ[name]} (FULL_SHARD or SHARD_GRAD_OP, true or false)"
              for name, value in spoken.items() if value not in FREED | HELD]  # fmt: skip
    policy = os.environ.get("FSDP_AUTO_WRAP_POLICY", POLICIES[0]).upper()
    if policy not in POLICIES:
        wrong.append(f"FSDP_AUTO_WRAP_POLICY={policy} ({', '.join(POLICIES)})")
    if wrong:
        raise not_done("FSDP", wrong)
    names = [name.strip() for name in os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "").split(",") if name.strip()]
    classes = {POLICIES[0]: tuple(names) or None, POLICIES[2]: ()}.get(policy)
    return Division(
        f"FSDP version {version}",
        freed=not any(value in HELD for value in spoken.values()),
        offload=said("FSDP_OFFLOAD_PARAMS"),
        classes=classes,
        least=int(os.environ.get("FSDP_MIN_NUM_PARAMS", 10**8)) if policy == POLICIES[1] else None,
        checkpointing=said("FSDP_ACTIVATION_CHECKPOINTING"),
    )


def by_deepspeed() -> Division:
    """Return what the variables of DeepSpeed say; in either stage a process has its share of the weights alone."""
    stage = os.environ.get(f"{ZERO}ZERO_STAGE", "2")
    wrong = refused(ZERO_ONLY)
    if stage not in ("2", "3"):
        wrong.append(f"zero_stage={stage} (2 or 3)")
    if wrong:
        raise not_done("DeepSpeed", wrong)
    return Division(
        f"DeepSpeed ZeRO stage {stage}",
        instead="by FSDP",
        freed=stage == "3",
        offload="cpu" in {os.environ.get(f"{ZERO}OFFLOAD_{what}_DEVICE") for what in ("OPTIMIZER", "PARAM")},
        accumulated=number("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", int),
        clipping=number("ACCELERATE_GRADIENT_CLIPPING", float),
    )


def refused(known: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return which variables have a value that is not done, with one that is."""
    present = {name: value for name in known if (value := os.environ.get(name))}
    return [
        f"{name}={value} ({known[name][0] if known[name] else 'leave it out'})"
        for name, value in present.items()
        if value.lower() not in known[name]
    ]


def not_done(kind: str, wrong: list[str]) -> ConfigError:
    """Return the error that names what a configuration asks and what it may ask."""
    return ConfigError(
        f"accelerate's configuration of {kind} asks for what recipes do not do: {'; '.join(wrong)}. What stands in "
        "parentheses is done; see docs/training.md."
    )


def said(name: str) -> bool:
    """Return whether a variable says yes, in accelerate's words."""
    from accelerate.utils import parse_flag_from_env

    return bool(parse_flag_from_env(name))


def number(name: str, kind: type) -> Any:
    """Return the number that a variable names, None where it leaves that to the run."""
    value = os.environ.get(name, "auto").lower()
    return None if value in ("auto", "none") else kind(float(value))


@contextmanager
def plainly(division: Division | None = None) -> Iterator[None]:
    """Context in which accelerate and transformers take the processes for those of a run that divides nothing.

    Accelerate would divide in its own way, and transformers load weights in the first process only.

    Args:
        division: what accelerate hears of all the same, when it sets up how processes talk to each other.
    """
    values: dict[str, str | None] = dict.fromkeys(FLAGS.values())
    if division is not None:
        values |= {FLAGS["FSDP"]: "true", "FSDP_OFFLOAD_PARAMS": str(division.offload).lower()}
    before = {name: os.environ.get(name) for name in values}
    try:
        put(values)
        yield
    finally:
        put(before)


def put(values: Mapping[str, str | None]) -> None:
    """Set variables of the environment, and take away those that are None."""
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value

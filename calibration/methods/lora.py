"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): the only weights that training changes."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from calibration.engines.hf import attention_for
from calibration.schema import Schema

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Lora(Schema):
    """Which weights are adapted, and by how much they can move. The defaults are the specification's."""

    rank: int = Field(default=16, ge=1)
    """Of each update; the higher, the more it can change."""
    alpha: int = Field(default=32, ge=1)
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] = Field(default=("q_proj", "k_proj", "v_proj", "o_proj"), min_length=1)
    """Names of the linear maps that get an adapter."""
    layers: tuple[int, ...] | None = None
    """Indices of the layers to adapt, the first being 0; None: all of them."""

    def config(self) -> "LoraConfig":
        """The adapter as PEFT describes it: no dropout and no bias, so that every engine can serve it."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=list(self.targets),
            layers_to_transform=None if self.layers is None else list(self.layers),
            task_type="CAUSAL_LM",
        )


def load_for_training(folder: Path) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """A model folder, in bfloat16 on a GPU and in float32 elsewhere, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
        attn_implementation=attention_for(folder),
    )
    return model, AutoTokenizer.from_pretrained(folder)


def save_adapter(model: "PeftModel", folder: Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json, and nothing that names this machine.

    PEFT's own `save_pretrained` records the path of the base model: equal adapters would differ.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous().cpu() for name, value in get_peft_model_state_dict(model).items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict() | {
        "base_model_name_or_path": None,
        "inference_mode": True,
    }
    ordered = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    (folder / "adapter_config.json").write_text(json.dumps(ordered, indent=2, sort_keys=True) + "\n")

"""The pipeline: components, plugins and adapters, and the way from a request to pictures.

request -> plan -> encode -> denoise -> finish
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from qwenimage_core.adapters.loaded import LoadedAdapters
from qwenimage_core.adapters.lora import Adapter, Mode
from qwenimage_core.context import Context
from qwenimage_core.encoders import Encoders
from qwenimage_core.errors import RequestError
from qwenimage_core.inputs import encode
from qwenimage_core.loop import StepReport, denoise
from qwenimage_core.memory.keeper import Keeper
from qwenimage_core.output import finish, pictures
from qwenimage_core.plan import Plan
from qwenimage_core.planner import make_plan
from qwenimage_core.registry import PluginRegistry
from qwenimage_core.request import CoreRequest
from qwenimage_core.values import TransformerOptions
from qwenimage_core.velocity import bind, modulation_table

if TYPE_CHECKING:
    from qwenimage_core.explain import Explanation
    from qwenimage_core.loading.components import Component
    from qwenimage_core.loading.config import ModelConfig
    from qwenimage_core.memory.presets import Machine, Memory
    from qwenimage_core.models.backbone import BackboneDescription
    from qwenimage_core.models.modulation import StepModulation
    from qwenimage_core.models.text_encoder import PromptEncoder
    from qwenimage_core.models.transformer import QwenImageTransformer
    from qwenimage_core.parallel.group import Group


@dataclass(frozen=True)
class Generation:
    """Pictures (or tensors) with the plans they were made by: `images[i]` was drawn from `seeds[i]`."""

    images: list[Any]
    seeds: list[int]
    plans: tuple[Plan, ...]
    adapters: tuple[Adapter, ...]
    peak_bytes: int | None = None
    """The most memory in use while it was drawn (on an accelerator of the device, else anonymous memory of this
    process), where placement is managed and the system says."""

    @property
    def prompts(self) -> list[str]:
        return [plan.prompt for plan in self.plans for _ in plan.seeds]


class QwenImagePipeline:
    """Draws pictures. Make one with `from_pretrained`; call it with the fields of a request."""

    encoders: type[Encoders] = Encoders
    """What turns prompts and pictures of a request into tokens; one is made for each request."""

    def __init__(
        self,
        *,
        components: Mapping[str, Sequence[Component]],
        prompts: PromptEncoder,
        backbone: BackboneDescription,
        registry: PluginRegistry,
        dtype: torch.dtype,
        device: torch.device,
        defaults: Mapping[str, Any] | None = None,
        options: TransformerOptions | None = None,
        given: Mapping[str, Any] | None = None,
        machine: Machine | None = None,
    ) -> None:
        self.components, self.prompts, self.backbone = components, prompts, backbone
        self.registry, self.dtype, self.device = registry, dtype, device
        self.defaults, self.options = dict(defaults or {}), options or TransformerOptions()
        self.given = dict(given or {})
        self.adapters = LoadedAdapters(components)
        self.keeper = Keeper(components, machine)
        self.group: Group | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | None = None,
        *,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        model_configs: Sequence[ModelConfig] = (),
        tokenizer_config: ModelConfig | None = None,
        processor_config: ModelConfig | None = None,
        vram_limit: float | None = None,
        memory: Memory | None = None,
        parallel: str | None = None,
        plugins: Sequence[Any] = (),
    ) -> Self:
        """Open a model: `model` is a hub id, a folder in hub layout or "tiny"; or give `model_configs` one by one.

        Headers are checked at once, weights are read when they are first needed. `torch_dtype` defaults to bfloat16,
        on a CPU to float32; `device` to the accelerator that is there. `memory` ("auto", "8gb", "16gb", "24gb", or
        bytes) chooses for each request where weights are. `parallel` ("data", "tensor", "sequence") is how the
        processes of torchrun share a run; with "data", each draws only its share. `plugins` are objects or files of
        plugins, beside the installed ones. Raises LoadError for files that are not what they should be.
        """
        from qwenimage_core.assemble import assemble

        group = _join(parallel, device)
        pipe = cls(
            **assemble(
                model,
                torch_dtype=torch_dtype,
                device=device if group is None else group.device,
                model_configs=model_configs,
                tokenizer_config=tokenizer_config,
                processor_config=processor_config,
                vram_limit=vram_limit,
                memory=memory,
                plugins=plugins,
            )
        )
        return pipe if group is None else group.attach(pipe)

    @classmethod
    def from_recipe(
        cls,
        name: str,
        *,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        vram_limit: float | None = None,
        memory: Memory | None = None,
        parallel: str | None = None,
        low_memory: bool = False,
        plugins: Sequence[Any] = (),
        **files: Any,
    ) -> Self:
        """Open the model of a recipe (`qwenimage recipes list`): its weights and LoRAs, its defaults for a request and
        the options that its weights were trained with; in its low-memory form if asked. `files` go to every
        ModelConfig: `local_model_path`, `download_source`, `skip_download`, ..."""
        from qwenimage_core.assemble import assemble_recipe

        group = _join(parallel, device)
        parts, loras = assemble_recipe(
            name,
            torch_dtype=torch_dtype,
            device=device if group is None else group.device,
            vram_limit=vram_limit,
            memory=memory,
            low_memory=low_memory,
            plugins=plugins,
            files=files,
        )
        pipe = cls(**parts)
        if group is not None:
            group.attach(pipe)
        for lora, config in loras.items():
            pipe.load_lora(config, name=lora)
        return pipe

    def __call__(self, prompt: str | list[str] | None = None, **fields: Any) -> Any:
        """Draw. One picture comes back as itself, several as a list: prompt by prompt, seed by seed."""
        images = self.generate(prompt, **fields).images
        return images[0] if len(images) == 1 else images

    def generate(self, prompt: str | list[str] | None = None, **fields: Any) -> Generation:
        """Draw, and keep the plans and seeds with the pictures."""
        plans = self.share(self.plans(prompt, **fields))
        seeds = [seed for plan in plans for seed in plan.seeds]
        with self.keeper.watch() as most:
            self._encode_texts(plans)
            images = [image for plan in plans for image in self.run(plan)]
        return Generation(images, seeds, tuple(plans), self.loras, most.bytes)

    @torch.no_grad()
    def _encode_texts(self, plans: Sequence[Plan]) -> None:
        """All prompts of a request at once, so that a text encoder which leaves after its stage is read once."""
        if len(plans) > 1 and not any(a.component == "text_encoder" for p in plans for a in p.adapters):
            for plan in plans:
                self.keeper.begin_encoding(plan)
                for branch in plan.branches:
                    for tokens in branch.text:
                        tokens.value  # noqa: B018  computed here, and kept

    def plan(self, prompt: str | None = None, **fields: Any) -> Plan:
        """Everything decided before the first step, for a request of one prompt."""
        plans = self.plans(prompt, **fields)
        if len(plans) != 1:
            raise RequestError("plan() is for one prompt.", got=f"{len(plans)} prompts", mend="use plans()")
        return plans[0]

    def plans(self, prompt: str | list[str] | None = None, **fields: Any) -> list[Plan]:
        """One plan a prompt. Every prompt uses the same seeds, so a list draws what single calls would."""
        given = {name: value for name, value in {"prompt": prompt, **fields}.items() if value is not None}
        given = {**self.given, **given}
        self.registry.load_all()
        active = self.registry.active(given)
        known = {*CoreRequest.model_fields, *(field for plugin in active for field in plugin.fields)}
        defaults = {name: value for name, value in self.defaults.items() if name in known}
        request = self.registry.request(**{**defaults, **self.registry.defaults(given), **given})
        first = self._first_seed() if request.seed is None else request.seed
        seeds = range(first, first + request.num_images_per_prompt)
        tile = (request.tile_size, request.tile_stride) if request.tiled else None
        encoders = self.encoders(self.prompts, self.components, self.backbone, tile=tile)
        ctx = Context(
            request=request,
            prompt="",
            backbone=self.backbone,
            encoders=encoders,
            components=self.components,
            options=self.options,
        )
        return self.keeper.settle([make_plan(replace(ctx, prompt=p), active, seeds) for p in request.prompts])

    def share(self, plans: Sequence[Plan]) -> Sequence[Plan]:
        """What this process draws of them, where several share a run; else all."""
        return plans if self.group is None else self.group.share(plans)

    def _first_seed(self) -> int:
        drawn = secrets.randbelow(2**32)
        return drawn if self.group is None else self.group.agree(drawn)

    def explain(self, prompt: str | list[str] | None = None, **fields: Any) -> Explanation:
        """What this request would do, in words; loads and runs no model."""
        from qwenimage_core.explain import explain

        return explain(self.plans(prompt, **fields), self.keeper, loras=[a.name for a in self.adapters])

    @torch.no_grad()
    def run(self, plan: Plan) -> list[Any]:
        """Carry out a plan: one output a seed."""
        transformer = self.components["transformer"][0]
        with self.adapters.during(plan.adapters):  # before encoding: an adapter may be the text encoder's
            self.keeper.begin_encoding(plan)
            inputs = encode(plan, dtype=self.dtype, device=self.device)
            self.keeper.begin_denoising(plan)
            module = transformer.module
            x_BNC = denoise(
                bind(module, plan, inputs, self._table(module, plan)),
                inputs.latents_BNC,
                plan.sigmas,
                blend=inputs.blend,
                progress=_progress(plan),
                after_step=_reporter(plan),
                active=[*(f"plugin {p.name}" for p in plan.plugins), *self.adapters.names(plan.adapters)],
            )
        self.keeper.begin_decoding(plan)
        images = finish(x_BNC, plan)
        self.keeper.end()
        return images

    def _table(self, module: QwenImageTransformer, plan: Plan) -> StepModulation:
        """What the schedule makes of the modulation weights, with the adapters of now."""
        sigmas = plan.sigmas[:-1]
        zero = any(branch.layout.zero_slices for branch in plan.branches)
        key = sigmas, plan.options.addition_t, zero, self.adapters.state(plan.adapters)
        return self.keeper.table(key, lambda: modulation_table(module, plan, sigmas))

    # --- adapters -------------------------------------------------------------------------------------------------

    def load_lora(
        self,
        source: ModelConfig | str | Path,
        *,
        strength: float = 1.0,
        name: str | None = None,
        component: str = "transformer",
        mode: Mode = "hot",
    ) -> str:
        """Attach a LoRA until `clear_lora`; several add up, each with its strength. Returns its name.

        `source` is a safetensors file, a folder that holds one, or a ModelConfig. `hot` runs it beside the weights,
        `merged` adds it into them. Raises AdapterError if it does not fit, naming the first tensors that are strange.
        """
        from qwenimage_core.loading.sources import locate

        path = source if isinstance(source, str | Path) else locate(source)[0]
        name = Path(path).stem if name is None else name
        self.adapters.load(
            Adapter(name=name, weights=path, strength=strength, component=component, mode=mode)
        )
        return name

    def clear_lora(self, name: str | None = None) -> None:
        """Detach one LoRA, or all of them; the weights are bit for bit what they were."""
        self.adapters.clear(name)

    @property
    def loras(self) -> tuple[Adapter, ...]:
        """What `load_lora` has attached, with the strengths of now."""
        return tuple(self.adapters)


def _join(parallel: str | None, device: str | torch.device | None) -> Group | None:
    if parallel is None:
        return None
    from qwenimage_core.parallel.group import Group

    return Group.join(parallel, device)


def _reporter(plan: Plan) -> Callable[[int, torch.Tensor, torch.Tensor], None] | None:
    callback = plan.request.step_callback
    if callback is None:
        return None

    def report(step: int, x_BNC: torch.Tensor, picture_BNC: torch.Tensor) -> None:
        preview = partial(pictures, picture_BNC, plan)
        callback(StepReport(step, plan.steps, plan.sigmas[step + 1], x_BNC, picture_BNC, preview))

    return report


def _progress(plan: Plan) -> Callable[[Any], Any]:
    if plan.request.progress_bar_cmd is not None:
        return plan.request.progress_bar_cmd
    from tqdm import tqdm

    return tqdm

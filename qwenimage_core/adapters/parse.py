"""Keys and tensors of a file -> `LoraWeights`, with every key accounted for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenimage_core.errors import AdapterError

from .diagnose import explain_strangers
from .formats import DOTTED_PREFIXES, FLAT_PREFIXES, FORMATS, TRANSFORMER_PREFIXES, published_modules
from .weights import Change, Kronecker, LoraWeights, LowRank

if TYPE_CHECKING:
    from torch import Tensor

AlphaOf = Callable[[str, int], float | None]
"""(module path, rank) -> the alpha that metadata states for it."""


def _pattern(ending: str) -> re.Pattern[str]:
    return re.compile(re.escape(ending).replace(r"\*", r"[\w.-]+?") + "$")


_ENDINGS = {
    ending: (role, _pattern(ending)) for row in reversed(FORMATS) for role, ending in row.parts.items()
}


class _Names:
    """Finds the module a key's stem means. Without `modules` (no model at hand) dotted paths are believed and
    underscored ones are looked up among the published names."""

    def __init__(self, modules: Collection[str] | None, stems: Iterable[str]) -> None:
        self.known = None if modules is None else set(modules)
        if modules is None:
            numbers = [int(n) for stem in stems for n in re.findall(r"transformer_blocks_(\d+)_", stem)]
            modules = published_modules(max(numbers, default=-1) + 1)
        counts = Counter(name.replace(".", "_") for name in modules)
        self.flat = {flat: name for name in modules if counts[flat := name.replace(".", "_")] == 1}

    def find(self, stem: str) -> tuple[str, str] | None:
        """(prefix, module path), or None for a stranger."""
        for prefix in FLAT_PREFIXES:
            if stem.startswith(prefix):
                module = self.flat.get(stem.removeprefix(prefix))
                return None if module is None else (prefix, module)
        if self.known is None:
            prefix = next((p for p in TRANSFORMER_PREFIXES if stem.startswith(p)), "")
            return prefix, stem.removeprefix(prefix)
        for prefix in ("", *DOTTED_PREFIXES):
            if stem.startswith(prefix) and stem.removeprefix(prefix) in self.known:
                return prefix, stem.removeprefix(prefix)
        return None


@dataclass
class _Group:
    """The tensors of one module in the file: role -> key, and the endings seen."""

    keys: dict[str, str]
    endings: set[str]


def parse(
    tensors: Mapping[str, Tensor],
    modules: Collection[str] | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
    alpha_of: AlphaOf | None = None,
    source: str = "LoRA",
) -> LoraWeights:
    """A state dict in any format of the table -> `LoraWeights`.

    `modules` are the module paths of the model it is meant for. Every key must be accounted for: strangers, a module
    given twice, a missing half and unsupported kinds are each an AdapterError. An alpha tensor in the file wins over
    `alpha_of` (what metadata states).
    """
    groups, strangers = _group(tensors, source)
    names = _Names(modules, groups)
    found: dict[str, _Group] = {}
    prefixes: Counter[str] = Counter()
    for stem, group in groups.items():
        match = names.find(stem)
        if match is None:
            strangers += group.keys.values()
        elif match[1] in found:
            raise AdapterError(
                f"{source}: two sets of tensors for {match[1]}.",
                got=f"{next(iter(found[match[1]].keys.values()))} and {next(iter(group.keys.values()))}",
                expected="one adapter in a file",
            )
        else:
            prefixes[match[0]] += 1
            found[match[1]] = group
    if strangers or not found:
        examples = [row.example() for row in FORMATS if row.name != "dora"]
        raise explain_strangers(source, strangers, len(tensors), examples, modules)
    changes = {name: _build(name, group, tensors, alpha_of, source) for name, group in found.items()}
    return LoraWeights(changes, _format_name(prefixes, found.values()), dict(metadata or {}), source)


def _split(key: str) -> tuple[str, str, str] | None:
    """(prefix and path, role, ending in the table), or None for a key that is no adapter's."""
    for ending, (role, pattern) in _ENDINGS.items():
        if (match := pattern.search(key)) and match.start():
            return key[: match.start()], role, ending
    return None


def _group(keys: Iterable[str], source: str) -> tuple[dict[str, _Group], list[str]]:
    groups: dict[str, _Group] = {}
    strangers: list[str] = []
    for key in keys:
        if (split := _split(key)) is None:
            strangers.append(key)
            continue
        stem, role, ending = split
        if role.startswith("dora"):
            raise AdapterError(
                f"{source} is a DoRA, which is not supported.",
                got=key,
                expected="a plain LoRA, LoKr or LoHa",
                mend="extract a plain LoRA from the merged weights in the tool that trained it, "
                "or train with DoRA switched off",
            )
        group = groups.setdefault(stem, _Group({}, set()))
        if role in group.keys:
            raise AdapterError(f"{source}: two adapters in one file.", got=f"{group.keys[role]} and {key}")
        group.keys[role] = key
        group.endings.add(ending)
    return groups, strangers


def _build(
    name: str, group: _Group, tensors: Mapping[str, Tensor], alpha_of: AlphaOf | None, source: str
) -> Change:
    parts = {role: tensors[key] for role, key in group.keys.items()}
    alpha = float(parts.pop("alpha").item()) if "alpha" in parts else None
    roles = set(parts)
    if roles & {"t2", "hada_t1", "hada_t2"}:
        raise AdapterError(
            f"{source}: {name} is a Tucker-decomposed convolution adapter.",
            expected="adapters of linear layers",
        )
    if roles == {"down", "up"}:
        down, up = _matrix(name, parts["down"], source), _matrix(name, parts["up"], source)
        if alpha is None and alpha_of is not None:
            alpha = alpha_of(name, int(down.shape[0]))
        return _low_rank(name, down, up, alpha, source)
    if roles == {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}:
        return _from_loha(name, parts, alpha, source)
    left, right = _factor(parts, "w1"), _factor(parts, "w2")
    if left is None or right is None or roles & {"down", "up"}:
        raise AdapterError(
            f"{source}: the tensors of {name} do not make an adapter.",
            got=", ".join(group.keys.values()),
            expected="a down and an up matrix (LoRA), four hada (LoHa) or two lokr factors",
        )
    # The rank belongs to a factor that is itself a product; an alpha without any has nothing to be divided by.
    rank = next((int(parts[role].shape[0]) for role in ("w1_b", "w2_b") if role in parts), None)
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    return Kronecker(_matrix(name, left, source), _matrix(name, right, source), scale, rank, alpha)


def _low_rank(name: str, down: Tensor, up: Tensor, alpha: float | None, source: str) -> LowRank:
    if down.shape[0] != up.shape[1] or down.shape[0] == 0:
        raise AdapterError(
            f"{source}: the two matrices of {name} do not fit each other.",
            got=f"down {tuple(down.shape)}, up {tuple(up.shape)}",
            expected="down (rank, in), up (out, rank)",
        )
    return LowRank(down, up, alpha)


def _from_loha(name: str, parts: Mapping[str, Tensor], alpha: float | None, source: str) -> LowRank:
    """(a1 b1) * (a2 b2) elementwise is a LoRA whose rank index is a pair (p, q): up[o, pq] = a1[o, p] a2[o, q],
    down[pq, i] = b1[p, i] b2[q, i]. The scale stays alpha / r, with r the rank of the file."""
    a1, b1, a2, b2 = (
        _matrix(name, parts[f"hada_{role}"], source).float() for role in ("w1_a", "w1_b", "w2_a", "w2_b")
    )
    if a1.shape[1] != b1.shape[0] or a2.shape[1] != b2.shape[0] or a1.shape[0] != a2.shape[0]:
        raise AdapterError(f"{source}: the LoHa matrices of {name} do not fit each other.")
    up = (a1[:, :, None] * a2[:, None, :]).flatten(1)  # (O, p, q) -> (O, p q)
    down = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)  # (p, q, I) -> (p q, I)
    return LowRank(down, up, None if alpha is None else alpha / b1.shape[0] * down.shape[0])


def _factor(parts: Mapping[str, Tensor], role: str) -> Tensor | None:
    if role in parts:
        return parts[role]
    a, b = parts.get(f"{role}_a"), parts.get(f"{role}_b")
    return None if a is None or b is None else a.float() @ b.float()


def _matrix(name: str, tensor: Tensor, source: str) -> Tensor:
    """A matrix; adapters of 1 x 1 convolutions, (a, b, 1, 1), are matrices too."""
    if tensor.ndim == 4 and tuple(tensor.shape[2:]) == (1, 1):
        tensor = tensor[:, :, 0, 0]
    if tensor.ndim != 2:
        raise AdapterError(
            f"{source}: a tensor of {name} is not a matrix.",
            got=tuple(tensor.shape),
            expected="two dimensions",
        )
    return tensor


def _format_name(prefixes: Counter[str], groups: Iterable[_Group]) -> str:
    """The row that writes this prefix and these endings; else the row of these endings, with the prefix named."""
    prefix = prefixes.most_common(1)[0][0]
    endings = set().union(*(group.endings for group in groups)) - {".alpha"}
    rows = [row for row in FORMATS if endings <= set(row.parts.values())]
    if not rows:
        return "mixed"
    exact = next((row for row in rows if row.prefix == prefix), None)
    return exact.name if exact else f"{rows[0].name} (prefix {prefix!r})" if prefix else rows[0].name

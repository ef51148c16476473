"""Which of a file's tensors are a model's weights."""

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any

from relight_trainer.inspect.contents import (
    Composite,
    Contents,
    Opaque,
    TensorRef,
    WrongInput,
    holds_tensors,
    short,
    walk,
)

_MODELS = ("model", "state_dict", "model_state_dict", "model_state", "module", "net", "network", "weights", "params")
_EMA = ("ema", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model")
_WRAPPERS = ("module.", "_orig_mod.")  # of DDP and torch.compile
_SHADOW = ("module", "shadow", "weights", "model", "state_dict", "params")


def weights(contents: Contents, *, key: str | None = None, ema: bool = False) -> list[tuple[str, TensorRef]]:
    """(name, tensor) of the weights: below `key` (`a.b`), else under the name that trainers give a model, or its EMA.

    DDP's and torch.compile's prefixes are left out of the names. Raises WrongInput where there are none, where two have
    one name, and for a tensor that is made of others (sparse, quantized, nested): its parts are no weights.
    """
    tree = _below(contents, key) if key is not None else _ema(contents) if ema else _model(contents.tree)
    leaves = list(walk(tree, whole=True))
    for name, leaf in leaves:
        if isinstance(leaf, Composite):
            raise WrongInput(
                f"{contents.path}: {name} is a {leaf.qualified}, and no plain tensor: save it dense (to_dense(), dequantize())"
            )
    named = [(name, leaf) for name, leaf in leaves if isinstance(leaf, TensorRef)]
    if not named:
        raise WrongInput(
            f"{contents.path}: no weights in it; at the top are {_names(contents.tree)}: name one with --key"
        )
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name, _ in named):
            named = [(name.removeprefix(prefix), tensor) for name, tensor in named]
    [(most, count)] = Counter(name for name, _ in named).most_common(1)
    if count > 1:
        raise WrongInput(
            f'{contents.path}: {count} tensors in it are named "{most}": name a part of the file with --key'
        )
    return named


def _model(tree: Any) -> Any:
    if isinstance(tree, Opaque):
        return tree  # a module saved whole
    if not isinstance(tree, Mapping):
        return None
    found = next((tree[name] for name in _MODELS if name in tree and _is_group(tree[name])), None)
    if found is not None:
        return found
    # A plain state_dict has tensors at the top; a module's extra state may stand between them.
    return tree if any(isinstance(value, TensorRef) for value in tree.values()) else None


def _ema(contents: Contents) -> Any:
    tree = contents.tree
    found = next((tree[name] for name in _EMA if isinstance(tree, Mapping) and name in tree), None)
    if found is None:
        raise WrongInput(f"{contents.path}: no EMA of the weights in it; at the top are {_names(tree)}")
    inner = next(
        (found[n] for n in _SHADOW if isinstance(found, Mapping) and n in found and _is_group(found[n])), found
    )
    return (
        {name: value for name, value in inner.items() if name != "n_averaged"} if isinstance(inner, Mapping) else inner
    )


def _is_group(tree: Any) -> bool:
    return isinstance(tree, (Mapping, Opaque)) and holds_tensors(tree)


def _below(contents: Contents, key: str) -> Any:
    tree = contents.tree
    rest = key
    while rest:
        names = sorted(map(_name, tree), key=len, reverse=True) if isinstance(tree, Mapping) else []
        name = next((n for n in names if rest == n or rest.startswith(f"{n}.")), None)
        if name is None:
            raise WrongInput(f'{contents.path}: no "{key}" in it; there {"are" if names else "is"} {_names(tree)}')
        tree = next(value for n, value in tree.items() if _name(n) == name)
        rest = rest[len(name) + 1 :]
    return {key: tree} if isinstance(tree, TensorRef) else tree


def _names(tree: Any) -> str:
    names = list(map(_name, itertools.islice(tree, 13))) if isinstance(tree, Mapping) else []
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") or "nothing that has a name"


def _name(key: Any) -> str:
    return key if isinstance(key, str) else short(key)

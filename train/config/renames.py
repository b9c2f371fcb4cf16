"""Keys and values that had other names before; a config with one is refused with the new name."""

from typing import Any

from .yaml import flatten

KEYS = {
    "data.learn": "data.loss_on",
    "data.layout": "data.packing",
    "optimizer.schedule": "optimizer.lr_schedule",
    "optimizer.final_fraction": "optimizer.min_lr_ratio",
    "optimizer.mask.ratio": "optimizer.mask.mask_ratio",
    "optimizer.mask.ratios": "optimizer.mask.mask_ratios",
    "optimizer.mask.final_ratio": "optimizer.mask.final_mask_ratio",
    "optimizer.mask.layers": "optimizer.mask.num_layers",
}
VALUES = {
    "data.packing": {"padded": "none"},
    "optimizer.mask.kind": {
        "gmt_update": "gmt",
        "random": "random_mask",
        "every": "every_few",
    },
}
# Values that mean something else today: refused beside an old key alone, which shows their age.
REUSED = {"optimizer.mask.kind": {"gmt": "gmt_mask"}}


def find_renamed(tree: dict[str, Any]) -> list[str]:
    """Returns one message for each old key and each old value of a config's tree.

    >>> find_renamed({"data": {"layout": "padded"}})
    ['data.layout is now data.packing; write data.packing: none']
    """
    given = dict(flatten(tree))
    messages = []
    for old, new in KEYS.items():
        if old in given:
            value = given[old]
            if isinstance(value, str):
                value = VALUES.get(new, {}).get(value, value)
            messages.append(f"{old} is now {new}; write {new}: {value}")
    tables = (VALUES, REUSED) if messages else (VALUES,)
    for table in tables:
        for key, values in table.items():
            value = given.get(key)
            if isinstance(value, str) and value in values:
                messages.append(f"{key}: {value!r} is now {values[value]!r}")
    return messages

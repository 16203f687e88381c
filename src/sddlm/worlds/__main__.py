"""``python -m sddlm.worlds``: objectives and samplers on enumerable worlds, as a page."""

from sddlm.worlds.table import page

print(page(), end="")

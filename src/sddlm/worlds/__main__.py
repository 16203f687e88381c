"""``python -m sddlm.worlds``: print the page of exact laws of objectives and samplers."""

from sddlm.worlds.table import page

print(page(), end="")

"""``python -m sddlm.exact``: print the page of exact laws of objectives and samplers."""

from sddlm.exact.table import page

print(page(), end="")

"""The checker of annotations at run time, for jaxtyping's import hook."""

import beartype

# As PEP 484 has it, an int is accepted where a float is annotated.
check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))

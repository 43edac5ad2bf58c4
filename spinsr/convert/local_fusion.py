"""The authors' names of local fusion blocks, which AWSRN and LAPAR share."""

TENSOR = '{tensor:weight_g|weight_v|bias}'
_FACTOR = '{factor:res_scale|x_scale}'


def rows(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """The rows of a table, for blocks whose names begin so."""
    their_unit, our_unit = f'{theirs}.b{{unit}}', f'{ours}.units.{{unit}}'
    return (
        (f'{their_unit}.body.0.{TENSOR}', f'{our_unit}.expand.{TENSOR}'),
        (f'{their_unit}.body.2.{TENSOR}', f'{our_unit}.reduce.{TENSOR}'),
        (f'{their_unit}.{_FACTOR}.scale', f'{our_unit}.{_FACTOR}'),
        (f'{theirs}.reduction.{TENSOR}', f'{ours}.fuse.{TENSOR}'),
        (f'{theirs}.{_FACTOR}.scale', f'{ours}.{_FACTOR}'),
    )

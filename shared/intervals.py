"""Says between what limits a share lies that was seen in some of many. It does no I/O."""

import math

#: Of the normal distribution, for 95 %.
Z = 1.96


def wilson(hits: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927); of nothing it is everything, 0 to 1."""
    if not total:
        return 0.0, 1.0
    z, share = Z, hits / total
    centre = share + z * z / (2 * total)
    margin = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, (centre - margin) / (1 + z * z / total)), (centre + margin) / (1 + z * z / total)

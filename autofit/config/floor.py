"""What a dataset says of every `cutoff_len`: where a sample would lose image tokens, and how many samples lose any.

LLaMA-Factory truncates without regard to image tokens, and a sample whose image tokens are cut ends the run when it is drawn.
"""

from bisect import bisect_right

from pydantic import Field

from autofit.config.base import Frozen


class Cut(Frozen):
    """A range of `cutoff_len` at which one sample loses image tokens, both ends included."""

    low: int = Field(ge=1)
    high: int
    sample: str
    """The sample that loses them at every value of the range, for example `row 900 of my_data`."""


class DataFloor(Frozen):
    """Every `cutoff_len` that cuts image tokens of a dataset. It holds for one `image_max_pixels`.

    Mostly one range, from 1 to below `cutoff_len`. Truncation shares the tokens between prompt and answer by rules that
    change where the answer is half of `cutoff_len`, so that a shorter value can be safe where a longer one is not.
    """

    image_max_pixels: int
    cuts: tuple[Cut, ...] = ()
    """Disjoint, ascending."""
    lengths: tuple[int, ...] = ()
    """Distinct lengths of the samples in tokens before truncation, ascending; 0 for one that is never truncated."""
    longer: tuple[int, ...] = ()
    """For each of them, how many samples are at least as long. Both are empty where nothing was profiled."""

    @property
    def cutoff_len(self) -> int:
        """The floor: from this `cutoff_len` on, no image token is cut. 1 where nothing is forbidden."""
        return self.cuts[-1].high + 1 if self.cuts else 1

    @property
    def samples(self) -> int | None:
        """In the dataset; None: not known."""
        return self.longer[0] if self.longer else None

    def truncated_share(self, cutoff_len: int) -> float | None:
        """Samples that lose tokens at a `cutoff_len`, 0..1 of all; None: not known."""
        if not self.longer:
            return None
        first = bisect_right(self.lengths, cutoff_len)
        return self.longer[first] / self.longer[0] if first < len(self.longer) else 0.0

    def at(self, cutoff_len: int) -> Cut | None:
        """What forbids a `cutoff_len`, or None."""
        return next((cut for cut in self.cuts if cut.low <= cutoff_len <= cut.high), None)

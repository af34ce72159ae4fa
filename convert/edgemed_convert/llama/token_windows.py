"""Token ids cut into windows as llama.cpp's own tools do it, so that numbers can be compared with theirs."""

from collections.abc import Sequence

from edgemed_convert.llama.messages import Loaded


def windows_of(token_ids: Sequence[int], length: int, loaded: Loaded) -> list[list[int]]:
    """Cut a stream of ids into windows; what does not fill the last one is left out.

    Where the model wants a BOS, it takes the place of each window's first token (llama-perplexity,
    llama-imatrix).
    """
    windows = [
        list(token_ids[start : start + length]) for start in range(0, len(token_ids) - length + 1, length)
    ]
    if loaded.add_bos and loaded.bos is not None:
        for window in windows:
            window[0] = loaded.bos
    return windows


def spread(windows: Sequence[list[int]], count: int) -> list[list[int]]:
    """Return at most `count` of the windows, spread evenly over all."""
    if len(windows) <= count:
        return list(windows)
    return [windows[number * len(windows) // count] for number in range(count)]

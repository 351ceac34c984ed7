"""Pictures into a file: GIF by Pillow, MP4 by ffmpeg."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from comarl.runs.files import atomically
from comarl.watching.canvas import Image

SUFFIXES = (".gif", ".mp4")
LAST = 1500
"""milliseconds for which a GIF shows the end of it all"""


def check_out(out: Path) -> None:
    """Raises, before anything is played, ValueError for a file of a kind that cannot be written,
    FileExistsError for one that is there, FileNotFoundError without its folder, ImportError for
    what is not installed."""
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"out={str(out)!r} must end in .gif or .mp4")
    if out.exists():
        raise FileExistsError(f"{out} exists; remove it, or name another file")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out}: there is no folder {out.parent}")
    if out.suffix.lower() == ".mp4":
        ffmpeg()


def ffmpeg() -> str:
    """The path of the program. Raises ImportError with the remedy."""
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            'an MP4 needs ffmpeg: pip install "comarl[watch]", or name a file that ends in .gif'
        ) from error


def write(frames: Iterator[Image], out: Path, fps: float) -> None:
    """Writes at least one frame, all of one even size. What was at `out` is not touched until all
    is written."""
    if out.suffix.lower() == ".gif":
        _write_gif(frames, out, fps)
    else:
        _write_mp4(frames, out, fps)


def _write_gif(frames: Iterator[Image], out: Path, fps: float) -> None:
    from PIL import Image

    # Colours are chosen for the picture; without dithering flat ones stay flat, and files small
    quantised = [
        frame.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        for frame in frames
    ]
    each = max(20, 10 * round(100 / fps))  # GIF counts in hundredths; viewers slow down below two
    durations = [each] * (len(quantised) - 1) + [max(each, LAST)]
    with atomically(out) as file:
        quantised[0].save(
            file,
            format="GIF",
            save_all=True,
            append_images=quantised[1:],
            duration=durations,
            loop=0,
        )


def _write_mp4(frames: Iterator[Image], out: Path, fps: float) -> None:
    """Pictures go to ffmpeg as they come. The package's own writer would fork, against which JAX
    warns."""
    first = next(frames)
    width, height = first.size
    # ffmpeg writes by name, and must not be seen before it has finished
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".watch-") as folder:
        path = Path(folder) / out.name
        raw = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {fps:g} -i -".split()
        made = ["-an", "-vcodec", "libx264", "-pix_fmt", "yuv420p", "-crf", "20", "-v", "error"]
        command = [ffmpeg(), "-y", *raw, *made, str(path)]
        with (
            tempfile.TemporaryFile() as said,
            subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said) as process,
        ):
            assert process.stdin is not None, "it is a pipe"
            # One that ends early says why, which is told below
            with suppress(BrokenPipeError):
                process.stdin.write(first.tobytes())
                for frame in frames:
                    process.stdin.write(frame.tobytes())
            with suppress(BrokenPipeError):
                process.stdin.close()
            failed = process.wait() != 0
            said.seek(0)
            words = said.read().decode(errors="replace").split()
        if failed:
            raise OSError(f"{out}: ffmpeg could not write it: {' '.join(words)[:200]}")
        path.replace(out)

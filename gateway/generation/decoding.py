"""The look that decodes: the picture of an image, the first and the last of a video.

Loads FFmpeg when it is imported (50 ms, 25 MB), which is why `inspection` imports it with the first result.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import cast

import av
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from gateway.generation.expectations import Seen

_DEMUXERS = {
    "video/mp4": "mp4",
    "video/x-m4v": "mp4",
    "video/quicktime": "mp4",
    "video/webm": "webm",
    "video/x-matroska": "matroska",
    "video/ogg": "ogg",
    "image/png": "png_pipe",
    "image/jpeg": "jpeg_pipe",
    "image/jpg": "jpeg_pipe",
    "image/gif": "gif",
    "image/webp": "webp_pipe",
}
"""How each is read. Left to guess, FFmpeg would take a play list too, and open whatever that names."""


class Undecodable(Exception):
    """What is wrong, as half a sentence."""


def look(path: Path, essence: str) -> Seen:
    """What can be seen of a file of the media type `essence`; nothing where this build cannot decode it.

    Raises Undecodable when it could, were the file sound. Blocks while it decodes: an image whole, a video from its last
    key frame on, which is all of it where there is only one.
    """
    demuxer = _DEMUXERS.get(essence)
    if demuxer is None or (essence == "image/webp" and _is_animated_webp(path)):
        return Seen()
    try:
        with av.open(f"file:{path}", format=demuxer, metadata_errors="ignore") as media:
            if not media.streams.video:
                raise Undecodable("there is no picture in it")
            pictures = media.streams.video[0]
            if essence.startswith("image/"):
                first = _first(media, pictures)
                return Seen(width=first.width, height=first.height)
            return _film(media, pictures)
    except InvalidDataError as error:
        raise Undecodable("it cannot be decoded") from error
    except FFmpegError:
        return Seen()  # read as something that FFmpeg has not learnt: it says nothing against the file


def _film(media: InputContainer, pictures: VideoStream) -> Seen:
    announced = Seen(frames=pictures.frames or None, audio=bool(media.streams.audio))
    decoder = cast(
        "VideoCodecContext | None", pictures.codec_context
    )  # its type forgets the codecs it does not know
    if decoder is None:
        return announced
    # How good the pictures look is nobody's question here. One thread: this is not to take every core from the answers.
    decoder.options = {"skip_loop_filter": "all"}
    decoder.thread_count = 1
    first = _first(media, pictures)
    last = _last(media, pictures)
    return Seen(
        width=first.width,
        height=first.height,
        seconds=_seconds(pictures, first, last),
        frames=announced.frames,
        audio=announced.audio,
    )


def _first(media: InputContainer, pictures: VideoStream) -> VideoFrame:
    try:
        frame = next(media.decode(pictures), None)
    except InvalidDataError as error:
        raise Undecodable("its first picture cannot be decoded") from error
    if frame is None:
        raise Undecodable("there is no picture in it")
    return frame


def _last(media: InputContainer, pictures: VideoStream) -> VideoFrame:
    with suppress(FFmpegError):  # it has no index to seek by; then everything is decoded
        media.seek((media.start_time or 0) + (media.duration or 0))
    last: VideoFrame | None = None
    broken_at = None
    for packet in media.demux(pictures):
        try:
            for frame in packet.decode():
                last = frame
        except InvalidDataError:
            # One that is broken in the middle may be let be; decoders hold some back, so the end is known at the end.
            broken_at = packet.pts if broken_at is None else max(broken_at, packet.pts or broken_at)
    if last is None or (broken_at is not None and broken_at > (last.pts or 0)):
        raise Undecodable("its last picture cannot be decoded")
    return last


def _seconds(pictures: VideoStream, first: VideoFrame, last: VideoFrame) -> float | None:
    """From the beginning of the first picture to the end of the last."""
    if first.pts is None or last.pts is None or pictures.time_base is None:
        return None
    lasting = 1 / pictures.average_rate if pictures.average_rate else 0
    return float((last.pts - first.pts) * pictures.time_base + lasting)


def _is_animated_webp(path: Path) -> bool:
    """FFmpeg takes these for broken."""
    with path.open("rb") as file:
        head = file.read(21)
    return head[12:16] == b"VP8X" and bool(head[20] & 2)

"""The Debian packages that building the image needs (``./justw image``)."""

from __future__ import annotations

from tests.packages import Packages

IMAGE = Packages(
    part="image",
    needs="the image is built as root with buildah, on a base that mmdebstrap makes from Debian's packages, and run with runc",
    recipe="./justw image",
    names=("buildah", "mmdebstrap", "debian-archive-keyring", "util-linux", "runc", "slirp4netns", "openssh-client"),
)

if __name__ == "__main__":
    IMAGE.main()

"""Guards every Python process that a test starts; PYTHONPATH leads here."""

import sockets

sockets.install()

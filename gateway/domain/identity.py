"""The names by which requests, bytes, purchases and callers are known."""

from __future__ import annotations

from typing import NewType

Fingerprint = NewType("Fingerprint", str)
"""What was asked for: 64 hexadecimal digits, sha256 over the canonical request."""

Digest = NewType("Digest", str)
"""What came back: 64 hexadecimal digits, sha256 over the bytes."""

Ticket = NewType("Ticket", str)
"""What was bought: the upstream's own request id, never parsed."""

PurchaseId = NewType("PurchaseId", str)
"""One row of the journal."""

RequestId = NewType("RequestId", str)
"""One caller's request, as the gateway answers for it: a dashed UUID, as the upstream documents its own."""

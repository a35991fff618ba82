"""The dead-letter brake: our own outage must not turn a topic into dead letters. Pure.

A bucket of tokens for each partition: a record that dies as unreadable or by a bug of ours takes one, a record that
ends in any other way puts one back. While such deaths are fewer than half, the bucket stays full; when nearly
everything dies, it is empty after `most` of them, and the rest wait until an operator has looked.
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class DeadLetterBrake:
    """The state of one partition's brake, which stops it if too many of its records die."""

    most: int
    """Tokens in a full bucket; 0 for no brake."""
    _tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self._tokens = self.most

    @property
    def engaged(self) -> bool:
        """True if no further record may die."""
        return self.most > 0 and self._tokens <= 0

    def take_token(self) -> bool:
        """Returns whether one more record may die, and takes a token if so."""
        if self.engaged:
            return False
        self._tokens -= self.most > 0
        return True

    def put_back_token(self) -> None:
        """Puts a token back: a record ended without such a death, or its dead letter could not be written."""
        if self._tokens < self.most:
            self._tokens += 1

    def release(self) -> None:
        """Releases the brake by hand, after an operator has looked."""
        self._tokens = self.most

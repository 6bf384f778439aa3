"""How many requests may be under way: additive increase, multiplicative decrease, one shared pause.

A service says how much it will take only by refusing. The window opens while answers come, and closes by a
quarter when a request is refused that was sent under the present limit: those that were under way before
say nothing new. (Chiu and Jain, 1989, is why this settles.)
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable

START = 20
CUT = 0.75
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0


class Window:
    """Lets requests in, by how the earlier ones fared."""

    def __init__(
        self,
        top: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Begin with room for 20.

        Args:
            top: The most requests at a time.
            clock: Seconds that never go back.
            sleep: Waits so many of these seconds.
            jitter: A number in [0, 1).
        """
        self.top, self.limit, self.inside = top, float(min(START, top)), 0
        self.resume_at = self.answered_at = clock()
        self._clock, self._sleep, self._jitter = clock, sleep, jitter
        self._threshold = float(top)
        self._cut_at = float("-inf")
        self._refusals = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> float:
        """Wait until nobody must pause and there is room, and take it; return when that was."""
        while True:
            if (pause := self.resume_at - self._clock()) > 0:
                await self._sleep(pause)
            elif self.inside < int(self.limit):
                self.inside += 1
                return self._clock()
            else:
                turn = asyncio.get_running_loop().create_future()
                self._waiting.append(turn)
                await turn

    def leave(self) -> None:
        """Give the room back."""
        self.inside -= 1
        self._admit()

    def answered(self, entered: float) -> None:
        """An answer came: open by one while nothing was refused yet, and after that by one a round trip."""
        self.answered_at, self._refusals = self._clock(), 0
        if self.inside < 0.8 * self.limit or entered <= self._cut_at:
            return  # more room would not be used, or the last cut has not shown yet
        self.limit = min(self.top, self.limit + (1 if self.limit < self._threshold else 1 / self.limit))
        self._admit()

    def refused(self, entered: float, retry_after: float | None) -> None:
        """A request was one too many: nobody sends for as long as the service says, and then fewer do.

        Args:
            entered: When the request was let in.
            retry_after: Seconds, if the service named them; without, 1, 2, 4, ... up to 60 at random.
        """
        now = self._clock()
        if retry_after is None:
            retry_after = min(FIRST_PAUSE * 2**self._refusals, LONGEST_PAUSE) * (0.5 + self._jitter() / 2)
        if now >= self.resume_at:
            self._refusals += 1
        self.resume_at = max(self.resume_at, now + retry_after)
        if entered > self._cut_at:
            self.limit = self._threshold = max(1.0, self.limit * CUT)
            self._cut_at = now

    def unanswered_for(self) -> float:
        """Seconds without an answer by the time that requests may go out again."""
        return max(self.resume_at, self._clock()) - self.answered_at

    def _admit(self) -> None:
        room = int(self.limit) - self.inside
        while self._waiting and room > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                room -= 1

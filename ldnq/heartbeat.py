"""Who of the processes of a run is still alive: a process that has lost another says so in one line, and ends."""

import os
import socket
import sys
import threading
import time
from datetime import timedelta

from torch.distributed import TCPStore, all_gather_object

from ldnq import errors

# Seconds: between two beats, and of silence that is enough where something else is wrong already.
INTERVAL, BRIEF = 0.5, 3.0
# Exit code of a process that has lost another.
LOST = 3
ENDED = "ended"


class Heartbeat:
    """Beats of all processes, counted in a store of the first; each listens to the next one, the last to the first.

    One that has not beaten for `timeout` seconds, or a store that does not answer for so long, is lost: who notices
    says so, marks the run as ended, by which all others end in silence, and exits. `speaks` tells whether it is this
    process, of those on its host, that says so where the store, and with it the first process, is gone.
    """

    def __init__(self, rank: int, size: int, timeout: float, speaks: bool) -> None:
        self.rank, self.next = rank, (rank + 1) % size
        self.timeout, self.speaks = timeout, speaks
        address = os.environ["MASTER_ADDR"]
        told: list[tuple[str, int]] = [("", 0)] * size
        patience = timedelta(seconds=max(timeout, 60))
        store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=patience) if rank == 0 else None
        all_gather_object(told, (socket.gethostname(), store.port if store else 0))
        self.hosts = [host for host, _ in told]
        # A connection of its own: that of a cut link may hang until the system gives up.
        self.store = store or TCPStore(address, told[0][1], is_master=False, timeout=patience)
        self.heard = self.answered = time.monotonic()
        self.over = threading.Event()
        self.closed = False
        self.ended: int | None = None
        for work in (self._beat, self._watch):
            threading.Thread(target=work, name=f"ldnq heartbeat {work.__name__}", daemon=True).start()

    def stop(self) -> None:
        """Beat no more, and miss nobody: all have come to the end."""
        self.over.set()

    def end_all(self, status: int) -> None:
        """Let all other processes end in silence, with the exit code `status`."""
        if self.over.is_set():
            return
        self.stop()
        self._mark(status)

    def await_loss(self) -> None:
        """Give the others but a moment to show that they are alive."""
        self.timeout = min(self.timeout, BRIEF)
        time.sleep(self.timeout + 4 * INTERVAL)

    def _beat(self) -> None:
        beats = -1
        while not self.over.is_set():
            try:
                self.store.add(f"beat {self.rank}", 1)
                if (count := self.store.add(f"beat {self.next}", 0)) != beats:
                    beats, self.heard = count, time.monotonic()
                if self.store.check([ENDED]):
                    self.ended = int(self.store.get(ENDED))
                self.answered = time.monotonic()
            except RuntimeError:
                self.closed = True
                return
            self.over.wait(INTERVAL)

    def _watch(self) -> None:
        while not self.over.wait(INTERVAL / 2):
            now = time.monotonic()
            if self.ended is not None:
                self._let_others_see()
                os._exit(self.ended)
            elif self.closed:
                self._exit(0, "is gone, its connection closed", self.speaks)
            elif now - self.answered > self.timeout:
                self._exit(0, f"has not answered for {now - self.answered:.0f} seconds", self.speaks)
            elif now - self.heard > self.timeout:
                self._exit(self.next, f"is gone, silent for {now - self.heard:.0f} seconds", True)

    def _exit(self, lost: int, how: str, speaks: bool) -> None:
        if self.over.is_set():
            return
        if speaks:
            host = f" on {self.hosts[lost]}" if len(set(self.hosts)) > 1 else ""
            print(f"error: rank {lost}{host} {how}: {errors.kept()}", file=sys.stderr, flush=True)
        if lost:
            self._mark(LOST)
        os._exit(LOST)

    def _mark(self, status: int) -> None:
        marking = threading.Thread(target=self._try_mark, args=(status,), daemon=True)
        marking.start()
        marking.join(BRIEF)
        self._let_others_see()

    def _let_others_see(self) -> None:
        if self.rank == 0:
            # The store goes with this process.
            time.sleep(2 * INTERVAL)

    def _try_mark(self, status: int) -> None:
        try:
            self.store.set(ENDED, str(status))
        except RuntimeError:
            self.closed = True

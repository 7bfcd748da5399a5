"""A scheduler over a real engine, which on demand fails or dawdles."""

import threading
from contextlib import contextmanager

import numpy as np

from serving.scheduler import Request, Sampling, Scheduler

GREEDY = Sampling(temperature=0)
LONG = 200
CONTEXT = 256


@contextmanager
def scheduling(engine, max_queue=64):
    scheduler = Scheduler(engine, max_queue=max_queue)
    try:
        yield scheduler
    finally:
        scheduler.close()


def ask(prompt=(5, 6, 7), max_tokens=20, sampling=GREEDY, **fields):
    return Request(tuple(prompt), max_tokens, sampling=sampling, **fields)


def ids(generation):
    return [token.id for token in generation]


class Wrapped:
    """A real engine that notes its calls, and on demand fails, dawdles or gives NaN."""

    def __init__(self, engine):
        self.engine = engine
        self.name, self.slots = engine.name, engine.slots
        self.max_length, self.vocab_size = engine.max_length, engine.vocab_size
        self.calls = []
        self.failures = 0  # decode steps to fail
        self.gate = threading.Event()  # decode waits for it
        self.gate.set()
        self.nan_slot = None
        self.closed = False

    def prefill(self, slot, ids):
        self.calls.append(("prefill", len(ids)))
        return self.engine.prefill(slot, ids)

    def decode(self, tokens):
        self.calls.append(("decode", len(tokens)))
        assert self.gate.wait(30)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the memory is full")
        answers = self.engine.decode(tokens)
        if self.nan_slot in answers:
            answers[self.nan_slot] = np.full_like(answers[self.nan_slot], np.nan)
        return answers

    def release(self, slot):
        self.engine.release(slot)

    def close(self):
        self.closed = True
        self.engine.close()


def alone(load, request):
    with scheduling(load(1)) as scheduler:
        return ids(scheduler.submit(request))

"""The story of toprope on one machine: train, publish, run on three devices, and be caught from above.

Every expectation that is not met ends the story with a sentence and a code that is not 0.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import threading
import time
from functools import partial
from types import FrameType

import asking
import fleet
import numpy as np
from numpy.typing import NDArray
from processes import OK, Group, StoryError

from toprope_shared.errors import TopropeError
from toprope_training.recipes import digits

QUESTIONS = 3
X = 3.0
Image = NDArray[np.float32]


def main() -> int:
    """Tell the story; return the exit code."""
    parser = argparse.ArgumentParser(description="Run broker, cloud and three devices on this machine.")
    parser.add_argument("--once", action="store_true", help="end everything after the story")
    parser.add_argument("--retrain", action="store_true", help="train again and publish the next versions")
    flags = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _story(once=flags.once, retrain=flags.retrain)
    except (StoryError, TopropeError) as error:
        print(f"\nThe story ended early. {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("\nEverything is stopped.", flush=True)
        return 130
    print("Everything is stopped.", flush=True)
    return 0


def _story(*, once: bool, retrain: bool) -> None:
    began = time.monotonic()
    plan = fleet.make_plan(fleet.environment())
    plan.home.mkdir(parents=True, exist_ok=True)
    with Group(plan.home / "logs", plan.env) as group:
        _title("1. Keys, broker and cloud")
        fleet.start_services(plan, group)
        told = fleet.last_reports(plan)
        _title("2. Three devices")
        fleet.start_devices(plan, group)
        _title("3. Two models")
        bundles = {name: fleet.train(plan, name, again=retrain) for name in ("linear", "digits")}
        _title("4. Signed, published, fetched in chunks, tried out, activated")
        for bundle in bundles.values():
            fleet.publish(plan, bundle)
        fleet.watch(plan, group, bundles, told)
        _title("5. Held-out digits, answered on the devices")
        sure = _local_answers(plan, began)
        _title("6. What a device can't answer is answered from above")
        _caught(plan, sure)
        _title("7. The cloud goes away")
        _without_cloud(plan, group, sure)
        if not once:
            _stay(plan, group)


def _local_answers(plan: fleet.Plan, began: float) -> Image:
    """Ask each device for some digits; return the image that a device was surest of."""
    images, labels = digits.holdout()
    right: list[bool] = []
    rows, surest = itertools.count(), (0.0, 0)
    for device in plan.devices:
        for number in range(QUESTIONS):
            row = next(rows)
            question = asking.digit_tensorflow if number == QUESTIONS - 1 else asking.digit
            protocol = "TensorFlow Serving" if number == QUESTIONS - 1 else "Open Inference"
            ask = partial(question, device.url, images[row])
            answer = asking.expect(f"A digit at {device.name}", ask, asking.EDGE, asking.UNSURE)
            if not right:
                print(f"The first answer came {time.monotonic() - began:.1f} s after the start.", flush=True)
            said = int(np.argmax(asking.numbers(answer)))
            right.append(said == labels[row])
            surest = max(surest, (answer.confidence, row))
            print(f"  {device.name}: answer {said}, label {labels[row]} ({answer.tell()}; {protocol})", flush=True)
    print(f"{sum(right)} of {len(right)} digits were right.", flush=True)
    if sum(right) < len(right) - 1:
        raise StoryError(f"Only {sum(right)} of {len(right)} digits were right; a good model misses one at most.")
    _unsure(plan.devices[0], images, labels)
    image: Image = images[surest[1]]
    return image


def _unsure(device: fleet.Device, images: Image, labels: NDArray[np.int64]) -> None:
    """Go through the held-out images until the device is not sure of one."""
    for image, label in zip(images, labels, strict=True):
        ask = partial(asking.digit, device.url, image)
        answer = asking.expect(f"A digit at {device.name}", ask, asking.EDGE, asking.UNSURE)
        if answer.fallback:
            said = int(np.argmax(asking.numbers(answer)))
            print(
                f"  {device.name} was {answer.confidence:.0%} sure of a {label}: the cloud said {said} ({answer.tell()})",
                flush=True,
            )
            return
    print(f"  {device.name} was sure of all {len(images)} held-out digits.", flush=True)


def _caught(plan: fleet.Plan, image: Image) -> None:
    onnx, tflite, both = plan.devices
    point = asking.expect(f"linear at {onnx.name}", lambda: asking.line(onnx.url, X), asking.EDGE)
    print(f"  {onnx.name} holds linear: x = {X:g} gives y = {asking.numbers(point)[0]:.3f} ({point.tell()})", flush=True)
    what = f"linear at {tflite.name}"
    point = asking.expect(what, lambda: asking.line(tflite.url, X), ("cloud", "no_model"), settle=asking.SETTLE_S)
    print(f"  {tflite.name} does not: x = {X:g} gives y = {asking.numbers(point)[0]:.3f} ({point.tell()})", flush=True)
    _repository(both, "unload")
    what = f"digits at {both.name} after unloading"
    seen = asking.expect(what, lambda: asking.digit(both.url, image), ("cloud", "runtime_missing"), settle=asking.SETTLE_S)
    print(f"  {both.name} with digits unloaded: {seen.tell()}", flush=True)
    _repository(both, "load")
    what = f"digits at {both.name} after loading"
    seen = asking.expect(what, lambda: asking.digit(both.url, image), asking.EDGE, settle=asking.SETTLE_S)
    print(f"  {both.name} with digits loaded again: {seen.tell()}", flush=True)


def _repository(device: fleet.Device, verb: str) -> None:
    answer = asking.ask("POST", f"{device.url}/v2/repository/models/digits/{verb}")
    if answer.status != OK:
        raise StoryError(f"{device.name} did not {verb} digits: {answer.tell()}")


def _without_cloud(plan: fleet.Plan, group: Group, image: Image) -> None:
    group.end("cloud")
    print("The cloud is stopped.", flush=True)
    for device in plan.devices:
        answer = asking.expect(
            f"A digit at {device.name} without the cloud", partial(asking.digit, device.url, image), asking.EDGE
        )
        print(f"  {device.name} goes on: {answer.tell()}", flush=True)
    tflite = plan.devices[1]
    nobody = asking.expect_nobody(f"linear at {tflite.name}", lambda: asking.line(tflite.url, X), "no_model")
    print(f"  {tflite.name}, linear: HTTP {nobody.status}, {nobody.body['error']}", flush=True)
    print(f"  The device's reason is {nobody.body['reasons'][0]}, the cloud's is {nobody.body['reasons'][1]}.", flush=True)
    fleet.start_cloud(plan, group)


def _stay(plan: fleet.Plan, group: Group) -> None:
    print("\nEverything goes on until Ctrl-C:", flush=True)
    for name, url in [("cloud", plan.cloud_url), *((device.name, device.url) for device in plan.devices)]:
        print(f"  {name:14} {url}", flush=True)
    print(f"  logs           {group.logs}", flush=True)
    never = threading.Event()
    while not never.wait(1.0):
        group.check()


def _title(text: str) -> None:
    print(f"\n{text}", flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())

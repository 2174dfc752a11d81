# SPDX-License-Identifier: Apache-2.0
"""Making a container: the steps of ``create`` and ``run``, in their order, each with its undoing.

A failed step runs the undoings in reverse, so that neither a half-made guest nor a claim stays. Nothing is printed on
success: in an engine's create, stdout is already the container's.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec, TypeVar

import anyio

from runphi_async.aio.waiting import together
from runphi_async.container import planning, spawning, writing
from runphi_async.container.assembly import assemble
from runphi_async.container.forgetting import forget, remove_logs
from runphi_async.container.group import Group
from runphi_async.container.hooks import run_hooks_of
from runphi_async.container.planning import Planned
from runphi_async.container.undoing import Undo
from runphi_async.events import Create

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from backends.base import Driver
    from runphi_async.container.assembly import Assembly
    from runphi_async.container.bundle import Asked
    from runphi_async.container.container import Container
    from runphi_async.container.order import Order, Register, Spawner
    from runphi_async.terminals.console import Lifeline

P = ParamSpec("P")
R = TypeVar("R")

#: Shown by `state` of a container whose console takes no input.
ONE_WAY_ANNOTATION: Final = "org.runphi.console-input"
#: the names of all steps, in the order of their definition
STEPS: Final[list[str]] = []


def _unseen(step: str, done: bool) -> None:
    """Nobody follows the steps."""


def step(
    function: Callable[Concatenate[Creation, P], Awaitable[R]],
) -> Callable[Concatenate[Creation, P], Awaitable[R]]:
    """Mark a step: whoever follows a creation sees it begin and end."""
    name = function.__name__.strip("_")
    STEPS.append(name)

    @functools.wraps(function)
    async def seen(self: Creation, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.follow(name, False)
        result = await function(self, *args, **kwargs)
        self.follow(name, True)
        return result

    return seen


class Creation:
    """One container in the making.

    :param follow: told of each step's beginning and (True) end; what it raises is as if the step had.
    """

    def __init__(
        self,
        register: Register,
        spawner: Spawner,
        order: Order,
        asked: Asked,
        *,
        follow: Callable[[str, bool], None] = _unseen,
    ) -> None:
        assert asked.request is not None
        self.follow = follow
        self._register = register
        self._shared = register.shared
        self._spawner = spawner
        self._order = order
        self._asked = asked
        self._request = asked.request
        self._undo = Undo()

    async def run(self) -> Container:
        """Take every step; return the container in state created."""
        try:
            return await self._steps()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._undo.run()
            raise

    async def _steps(self) -> Container:
        planned = await self._plan()
        container = await self._claim_record(planned)
        planned, driver = await self._claim_machine(container, planned)
        await self._write(container, planned)
        await self._prepare(driver)
        group = Group(container, driver, self._asked.spec, driver.overhead_bytes)
        lifeline = spawning.open_lifeline(container.record, self._asked.spec.process, self._spawner)
        try:
            assembly = await self._assemble(container, driver, lifeline)
            # The VMM starts up while the kernel makes the cgroup and moves it there (up to 15 ms); it holds no guest
            # memory yet, and it cannot run its guest before both are done.
            await together(
                lambda: self._bring_to_life(container, assembly, lifeline, group), lambda: self._make_group(group)
            )
            await self._fill_group(group)
            await self._run_hooks(container)
            await self._hand_over_terminal(lifeline)
        finally:
            lifeline.close()
        await self._publish(container)
        return container

    # Section: the steps

    @step
    async def _plan(self) -> Planned:
        spec, config = self._asked.spec, self._shared.config
        self._order.check(spec)
        guest = await anyio.to_thread.run_sync(planning.specify, self._order, self._request, spec, config)
        backend = await self._register.backend(self._request.backend or "")
        return Planned(guest, backend, await backend.plan(guest))

    @step
    async def _claim_record(self, planned: Planned) -> Container:
        order, shared = self._order, self._shared
        name = shared.store.claim(order.id, order.root)
        remove = functools.partial(shared.store.remove, name, order.root, order.id)
        self._undo.push("remove the record", functools.partial(anyio.to_thread.run_sync, remove))
        record = writing.first_record(name, order, self._asked.spec, planned, shared)
        writing.plan_logs(record, self._request.log, shared.config, self._register.logged())
        self._undo.push("remove its logs", functools.partial(anyio.to_thread.run_sync, remove_logs, record))
        container = self._register.adopt(record)
        self._undo.push("forget the container", lambda: self._drop(container))
        container.know_hooks(self._asked.spec.hooks)
        return container

    async def _drop(self, container: Container) -> None:
        self._register.drop(container)
        container.settled.set()

    @step
    async def _claim_machine(self, container: Container, planned: Planned) -> tuple[Planned, Driver]:
        claimed = await planned.claimed(container.record.name)
        container.record.plan = claimed.backend.remember(claimed.plan)
        driver = claimed.backend.driver(claimed.plan, container.directory)
        self._undo.push("end the guest", driver.bury)
        return claimed, driver

    @step
    async def _write(self, container: Container, planned: Planned) -> None:
        container.save()
        self._shared.store.save_made(container.record)
        await anyio.to_thread.run_sync(writing.write_files, container, self._asked.raw, planned)
        plan = planned.plan
        container.note(Create(backend=plan.backend, guest=plan.kind, memory=plan.memory_bytes, vcpus=plan.vcpus))

    @step
    async def _prepare(self, driver: Driver) -> None:
        await driver.create()

    @step
    async def _assemble(self, container: Container, driver: Driver, lifeline: Lifeline) -> Assembly:
        assembly = await assemble(container, driver, lifeline.held())
        self._undo.push("close its streams", assembly.close)
        if assembly.streams.console.one_way:
            container.record.annotations[ONE_WAY_ANNOTATION] = "no"
        return assembly

    @step
    async def _bring_to_life(self, container: Container, assembly: Assembly, lifeline: Lifeline, group: Group) -> None:
        process = await spawning.spawn(container, assembly, lifeline, self._asked.spec, self._spawner)

        async def kill() -> None:
            process.send(9)
            process.close()

        self._undo.push("kill its init process", kill)
        running = await self._register.enliven(container, assembly, process)
        # From here on the guest's own task answers for its end, also when a later step fails.
        self._undo.hand_over("end the container", lambda: self._end(container))
        running.begin()
        await assembly.driver.watch(running.told())
        running.heed()
        container.save()
        group.rank((process.pid,))  # before the init process forks the VMM, which gets the same
        await self._spawner.go()

    async def _end(self, container: Container) -> None:
        await container.end()
        if container.init is not None:
            container.init.kill()
        await forget(container)
        self._register.drop(container)

    @step
    async def _make_group(self, group: Group) -> None:
        self._undo.push("remove its cgroup", group.remove)
        await group.make()

    @step
    async def _fill_group(self, group: Group) -> None:
        await group.fill()

    @step
    async def _run_hooks(self, container: Container) -> None:
        hooks = self._asked.spec.hooks
        await run_hooks_of(container.record, hooks.prestart, "prestart")
        await run_hooks_of(container.record, hooks.create_runtime, "createRuntime")

    @step
    async def _hand_over_terminal(self, lifeline: Lifeline) -> None:
        if lifeline.master >= 0 and self._order.console_socket is not None:
            await spawning.hand_over(self._order.console_socket, self._spawner, lifeline.master)

    @step
    async def _publish(self, container: Container) -> None:
        writing.publish(container, self._order.pid_file)

"""A state keeps the newest commands of operators, and never forgets that it is paused."""

from service.log.cuts import Cut, Order, Ordered, Pause, Promote, Resume, pause_of
from service.log.position import ORIGIN, Position
from service.trainer.orders import KEPT, after


def followed(orders: list[Order]) -> tuple[Ordered, ...]:
    commands: tuple[Ordered, ...] = ()
    for number, order in enumerate(orders, 1):
        commands = after(commands, number, Cut(Position(ORIGIN), command=order))
    return commands


def test_a_pause_outlasts_any_number_of_promotions() -> None:
    promotions: list[Order] = [Promote("ops", 2, f"sgd:{k}") for k in range(1, 3 * KEPT)]
    commands = followed([Pause("ops", 1), *promotions])
    assert pause_of(commands) == Ordered(1, Pause("ops", 1))
    assert [one.order for one in commands[1:]] == promotions[-KEPT:]
    resumed = followed([Pause("ops", 1), *promotions, Resume("ops", 3)])
    assert pause_of(resumed) is None
    assert len(resumed) == KEPT


def test_commands_survive_a_checkpoint() -> None:
    commands = followed([Pause("ann", 1), Promote("ops", 2, "adam:0.003"), Resume("ann", 3)])
    assert tuple(Ordered.from_json(one.to_json()) for one in commands) == commands

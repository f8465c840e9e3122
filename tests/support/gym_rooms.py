"""An environment as gym knows it, without this project's base class."""


class GymRoom:
    instructions = "Say the number."

    def __init__(self, hints: bool = True) -> None:
        self._hints = hints

    def reset(self, seed: int = 0):
        self._wanted = seed % 5
        return f"Number {self._wanted}." if self._hints else "A number.", {}

    def step(self, action: str):
        right = action == str(self._wanted)
        return "Right." if right else "Wrong.", float(right), right, False, {}

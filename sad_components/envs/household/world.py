"""What the household world holds: rooms, receptacles, objects, and which goes where.

The vocabulary is a part of ALFWorld's: kinds are written as its text shows them (``sinkbasin``,
``remotecontrol``). Where things usually lie is this project's own table; generator and expert
share it as common sense, so that a search has an order that can be learnt.
"""

from __future__ import annotations

from dataclasses import dataclass

#: ALFWorld's task types; game ``i`` of a split has type ``TASK_TYPES[i % 6]``.
TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)

LAMP = "desklamp"
LAMP_HOMES = ("desk", "sidetable", "dresser", "shelf")
OPENABLE = frozenset({"fridge", "microwave", "cabinet", "drawer", "safe"})
STATIONS = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
RESULTS = {"clean": "clean", "heat": "hot", "cool": "cool"}

#: Per room: receptacle kind -> fewest and most of it.
ROOMS: dict[str, dict[str, tuple[int, int]]] = {
    "kitchen": {
        "cabinet": (1, 3),
        "coffeemachine": (0, 1),
        "countertop": (1, 2),
        "diningtable": (0, 1),
        "drawer": (1, 2),
        "fridge": (1, 1),
        "garbagecan": (0, 1),
        "microwave": (1, 1),
        "shelf": (0, 2),
        "sinkbasin": (1, 1),
        "stoveburner": (0, 2),
    },
    "bedroom": {
        "armchair": (0, 1),
        "bed": (1, 1),
        "desk": (1, 1),
        "drawer": (1, 3),
        "dresser": (0, 1),
        "garbagecan": (0, 1),
        "safe": (0, 1),
        "shelf": (1, 3),
        "sidetable": (1, 2),
    },
    "livingroom": {
        "armchair": (0, 2),
        "cabinet": (0, 2),
        "coffeetable": (1, 1),
        "diningtable": (0, 1),
        "drawer": (1, 2),
        "dresser": (0, 1),
        "garbagecan": (0, 1),
        "ottoman": (0, 1),
        "shelf": (1, 2),
        "sidetable": (1, 2),
        "sofa": (1, 1),
    },
    "bathroom": {
        "bathtubbasin": (0, 1),
        "cabinet": (1, 3),
        "countertop": (1, 1),
        "drawer": (1, 2),
        "garbagecan": (0, 1),
        "handtowelholder": (0, 1),
        "shelf": (1, 2),
        "sinkbasin": (1, 1),
        "toilet": (1, 1),
    },
}


@dataclass(frozen=True)
class ObjectKind:
    """Where objects of a kind lie, and what can be done to them.

    Args:
        rooms: rooms they occur in.
        likely: receptacle kinds they usually lie in.
        possible: receptacle kinds they sometimes lie in; both kinds can hold them.
        treatments: of ``clean``, ``heat``, ``cool`` what applies to them.
    """

    rooms: tuple[str, ...]
    likely: tuple[str, ...]
    possible: tuple[str, ...] = ()
    treatments: tuple[str, ...] = ()

    @property
    def homes(self) -> tuple[str, ...]:
        """Every receptacle kind that can hold an object of this kind."""
        return self.likely + self.possible


def _kind(rooms: str, likely: str, possible: str = "", treatments: str = "") -> ObjectKind:
    return ObjectKind(
        tuple(rooms.split()),
        tuple(likely.split()),
        tuple(possible.split()),
        tuple(treatments.split()),
    )


_FOOD = "countertop diningtable fridge"
_TOOLS = "countertop diningtable drawer"
_DISHES = "cabinet countertop shelf"
_DESKTOP = "desk dresser sidetable coffeetable"

OBJECTS: dict[str, ObjectKind] = {
    # kitchen
    "apple": _kind("kitchen", _FOOD, "garbagecan microwave sinkbasin", "clean heat cool"),
    "bread": _kind("kitchen", _FOOD, "garbagecan microwave", "heat cool"),
    "egg": _kind("kitchen", _FOOD, "garbagecan microwave sinkbasin", "clean heat cool"),
    "lettuce": _kind("kitchen", _FOOD, "garbagecan sinkbasin", "clean cool"),
    "potato": _kind("kitchen", _FOOD, "garbagecan microwave sinkbasin", "clean heat cool"),
    "tomato": _kind("kitchen", _FOOD, "garbagecan microwave sinkbasin", "clean heat cool"),
    "bowl": _kind("kitchen", _DISHES, "diningtable fridge microwave sinkbasin", "clean cool"),
    "cup": _kind("kitchen", _DISHES, "diningtable fridge microwave sinkbasin", "clean heat cool"),
    "mug": _kind(
        "kitchen",
        "cabinet coffeemachine countertop",
        "diningtable fridge microwave shelf sinkbasin",
        "clean heat cool",
    ),
    "plate": _kind("kitchen", _DISHES, "diningtable fridge microwave sinkbasin", "clean heat cool"),
    "pan": _kind("kitchen", "stoveburner countertop cabinet", "fridge sinkbasin", "clean cool"),
    "pot": _kind("kitchen", "stoveburner countertop cabinet", "fridge sinkbasin", "clean cool"),
    "butterknife": _kind("kitchen", _TOOLS, "sinkbasin", "clean"),
    "fork": _kind("kitchen", _TOOLS, "sinkbasin", "clean"),
    "spoon": _kind("kitchen", _TOOLS, "sinkbasin", "clean"),
    "spatula": _kind("kitchen", _TOOLS, "sinkbasin", "clean"),
    "ladle": _kind("kitchen", _TOOLS, "cabinet sinkbasin", "clean"),
    "dishsponge": _kind("kitchen", "sinkbasin countertop", "cabinet drawer shelf", "clean"),
    "peppershaker": _kind("kitchen", "countertop diningtable shelf", "cabinet drawer"),
    "saltshaker": _kind("kitchen", "countertop diningtable shelf", "cabinet drawer"),
    "winebottle": _kind("kitchen", "cabinet countertop fridge", "diningtable garbagecan", "cool"),
    # bedroom and living room
    "alarmclock": _kind("bedroom", "desk sidetable dresser", "shelf"),
    "baseballbat": _kind("bedroom", "bed", "desk sidetable"),
    "book": _kind("bedroom livingroom", "bed desk shelf sofa coffeetable", "drawer dresser"),
    "cd": _kind("bedroom", "desk drawer shelf", "dresser garbagecan safe"),
    "cellphone": _kind("bedroom livingroom", "bed sofa " + _DESKTOP, "armchair drawer safe"),
    "creditcard": _kind("bedroom livingroom", _DESKTOP, "armchair drawer ottoman safe shelf sofa"),
    "keychain": _kind("bedroom livingroom", _DESKTOP, "armchair drawer ottoman safe shelf sofa"),
    "laptop": _kind("bedroom livingroom", "bed desk sofa coffeetable", "armchair dresser ottoman"),
    "newspaper": _kind("livingroom", "coffeetable sofa armchair", "drawer ottoman sidetable"),
    "pen": _kind("bedroom", "desk drawer shelf", "dresser garbagecan sidetable"),
    "pencil": _kind("bedroom", "desk drawer shelf", "dresser garbagecan sidetable"),
    "pillow": _kind("bedroom livingroom", "bed sofa armchair", "ottoman"),
    "remotecontrol": _kind(
        "livingroom", "coffeetable sofa armchair", "drawer dresser ottoman shelf sidetable"
    ),
    "statue": _kind("livingroom", "coffeetable dresser shelf", "diningtable sidetable"),
    "tissuebox": _kind("livingroom", "coffeetable sidetable shelf", "cabinet drawer dresser"),
    "vase": _kind("livingroom", "coffeetable shelf diningtable", "cabinet dresser sidetable"),
    "watch": _kind("bedroom livingroom", _DESKTOP, "drawer safe shelf"),
    # bathroom
    "candle": _kind("bathroom", "countertop shelf toilet", "cabinet drawer"),
    "cloth": _kind(
        "bathroom", "bathtubbasin cabinet countertop", "drawer shelf sinkbasin toilet", "clean"
    ),
    "handtowel": _kind("bathroom", "handtowelholder countertop", "cabinet drawer shelf"),
    "soapbar": _kind(
        "bathroom",
        "bathtubbasin countertop sinkbasin",
        "cabinet drawer garbagecan shelf toilet",
        "clean",
    ),
    "soapbottle": _kind("bathroom", "cabinet countertop shelf", "drawer garbagecan toilet"),
    "spraybottle": _kind("bathroom", "cabinet countertop toilet", "drawer garbagecan shelf"),
    "toiletpaper": _kind("bathroom", "cabinet toilet", "countertop drawer garbagecan shelf"),
}


def kind_of(name: str) -> str:
    """The kind in an entity's name: ``"cabinet 2"`` -> ``"cabinet"``."""
    return name.split(" ", 1)[0]


def homes_of(object_kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Likely and possible receptacle kinds of an object kind (empty for an unknown one)."""
    if object_kind == LAMP:
        return LAMP_HOMES, ()
    known = OBJECTS.get(object_kind)
    return (known.likely, known.possible) if known else ((), ())

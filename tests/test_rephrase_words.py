"""What a paraphrase may be: marks and person kept, verb and object not lost, nothing twice."""

from __future__ import annotations

from collections import Counter

import pytest

from lavila_fast.rephrase.choose import choose, fault
from lavila_fast.rephrase.marks import Marked
from lavila_fast.rephrase.words import content, plain, stem

CUP = Marked.parse("#C C picks up the red cup with the left hand")


@pytest.mark.parametrize(
    "forms",
    [
        "slice slices sliced slicing",
        "carry carries carried carrying",
        "cut cuts cutting",
        "stir stirs stirred stirring",
        "press presses pressed",
        "dry dries dried drying",
        "dish dishes",
        "box boxes",
        "glass glasses",
        "knife knives",
        "take takes took taken taking",
        "hold holds held holding",
        "place places placed placing",
        "open opens opened opening",
        "man man's men",
    ],
)
def test_forms_of_a_word_are_one(forms):
    assert len({stem(form) for form in forms.split()}) == 1


def test_words_that_are_not_one():
    words = ["cup", "cap", "cut", "carry", "pan", "pen", "bowl", "box", "boil", "glass", "grass", "ring", "red"]
    assert len({stem(word) for word in words}) == len(words)


def test_content_words():
    assert content("C picks up the red cup, with the other hand.") == ["c", "pick", "red", "cup", "hand"]
    assert plain("The Cup, is  RED.") == "the cup is red"


@pytest.mark.parametrize(
    ("text", "natural"),
    [
        ("#C C picks up the cup", "The person picks up the cup."),
        ("#c c walks around.", "The person walks around."),
        ("# C C  opens\nthe box", "The person opens the box."),
        ("#O a man X talks to C", "A man X talks to the person."),
        ("#O The woman Y cuts", "The woman Y cuts."),
        ("#C C turns C's hand", "The person turns the person's hand."),
        ("someone pours water", "Someone pours water."),
        ("take vitamin C daily!", "Take vitamin C daily!"),
        ("open drawer", "Open drawer."),
    ],
)
def test_what_a_model_reads(text, natural):
    assert Marked.parse(text).natural() == natural


@pytest.mark.parametrize(
    ("text", "candidate", "narration"),
    [
        ("#C C picks up the cup", "The person lifts the cup.", "#C C lifts the cup"),
        ("#C C picks up the cup", "The cup is picked up by this person.", "#C the cup is picked up by C"),
        ("#C C picks up the cup.", "With care, the person lifts it", "#C with care, C lifts it."),
        ("#c c picks up the cup", "A person lifts the cup.", "#c C lifts the cup"),
        ("#O a man X talks to C", "X, a man, speaks to the person.", "#O X, a man, speaks to C"),
        ("#O The man cuts", "The man slices.", "#O The man slices"),
        ("open drawer", "Pull the drawer open.", "pull the drawer open"),
        ("Open drawer.", "Pull the drawer open.", "Pull the drawer open."),
    ],
)
def test_what_becomes_a_narration_again(text, candidate, narration):
    assert Marked.parse(text).restore(candidate) == narration


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("C lifts the red cup with the left hand", ""),
        ("with the left hand, C picks the red cup up", ""),
        ("the red cup is picked up by C using the left hand", ""),
        ("C lifts the red mug with his left hand", ""),
        ("", "empty"),
        ("...", "empty"),
        ("C " + "picks up the red cup with the left hand " * 3, "long"),
        ("c picks up the red cup, with the left hand!", "same"),
        ("the red cup is picked up with the left hand", "person"),
        ("C and X lift the red cup with the left hand", "person"),
        ("the man C lifts the red cup with the left hand", "person"),
        ("they lift the red cup with the left hand of C", "person"),
        ("C has the red cup in the left hand", "verb"),
        ("C picks something up", "object"),
        ("C lifts the knife", "object"),
    ],
)
def test_why_a_candidate_does_not_stay(said, reason):
    assert fault(CUP, said) == reason


def test_without_a_mark_no_word_is_the_verb():
    source = Marked.parse("open the fridge door")
    assert fault(source, "the fridge door is there") == ""
    assert fault(source, "look at something") == "object"


@pytest.mark.parametrize(
    ("text", "askable"),
    [
        *(("#C C picks up #unsure", False), ("#C # Unsure", False), ("#C", False), (" ", False)),
        *(("x", True), ("a\ud800", False), ("a " * 200, True), ("a " * 201, False)),
    ],
)
def test_what_is_not_asked_for(text, askable):
    assert Marked.parse(text).askable is askable


def test_candidates_are_counted():
    dropped: Counter[str] = Counter()
    candidates = [
        "The person lifts the red cup with the left hand.",
        "the person lifts the red cup, with the left hand",
        "The person picks up the red cup with the left hand.",
        "With the left hand, the person grabs the red cup.",
        "The person takes the red cup with the left hand.",
        "",
    ]
    kept = choose(CUP, candidates, 2, dropped)
    assert kept == ["#C C lifts the red cup with the left hand", "#C with the left hand, C grabs the red cup"]
    assert dropped == {"repeated": 1, "same": 1, "surplus": 1, "empty": 1}

"""Who is both trained on and verified."""

from __future__ import annotations

import logging
import re
import unicodedata
from typing import Literal, NamedTuple

import numpy as np

from mnvision.data.identity_index import IdentityIndex, People
from mnvision.data.index import first_few
from mnvision.errors import UserError

Overlap = Literal["report", "exclude"]

log = logging.getLogger(__name__)

_LEAST_LETTERS = 3


def normalised(name: str) -> str | None:
    """A name without case, accents, blanks and marks, to compare it with another set's; None for a number.

    Names with fewer than three letters in a row, such as ``n000123``, are numbers.
    """
    plain = unicodedata.normalize("NFKD", name).casefold()
    plain = "".join(letter for letter in plain if letter.isalnum())
    return plain if re.search(rf"[^\W\d_]{{{_LEAST_LETTERS}}}", plain) else None


class Verified(NamedTuple):
    """Whom a run verifies.

    Attributes:
        source: Where this comes from, for messages.
        names: Of the identities, none where they are not known.
        files: Names of the pictures.
        same_set: Whether they are of the set that is trained on; its names are then compared as they are.
    """

    source: str
    names: list[str]
    files: list[str]
    same_set: bool


def check_overlap(people: People, verified: Verified, overlap: Overlap) -> People:
    """Compares the people to train on with those who are verified: within one set exactly, else by name.

    Args:
        people: To train on.
        verified: Whom pairs are of.
        overlap: "report" logs who is in both, and refuses it within one set; "exclude" takes them out.

    Returns:
        The people to train on.

    Raises:
        UserError: See ``overlap``, or nobody is left.
    """
    if verified.same_set:
        shared = sorted((people.present() & set(verified.names)) | _owners(people, set(verified.files)))
    else:
        shared = _shared_names(people, verified.names, verified.source)
    if not shared:
        return people
    text = f"{len(shared)} of {len(people.present())} identities to train on are also verified ({verified.source})"
    if overlap == "exclude":
        people.found.add("identities not trained on, as they are verified", shared)
        excluded = set(shared)
        kept = people.take(~np.isin(people.identities, [r for r, name in enumerate(people.names) if name in excluded]))
        if not len(kept):
            raise UserError(f"{people.source}: {text}, so there is nobody to train on")
        return kept
    if verified.same_set:
        raise UserError(
            f"{people.source}: {text}: {first_few(shared)}; data.overlap=exclude trains without them, so that no score "
            "is of people who were trained on"
        )
    log.warning("%s: %s: %s; data.overlap=exclude trains without them", people.source, text, first_few(shared))
    return people


def people_in_both(every: People, trained: IdentityIndex, verified: IdentityIndex) -> list[str] | None:
    """Who was trained on and is verified: within one folder of pictures exactly, else by name.

    Args:
        every: All that is known of the set that was trained on.
        trained: Its training pictures.
        verified: The pictures of pairs, of that set or of another one.

    Returns:
        Names, sorted; None where the names of one side are numbers or not known, so that nothing can be compared.
    """
    ours, theirs = trained.identity_names(), verified.identity_names()
    if trained.folder.resolve() == verified.folder.resolve():
        return sorted(set(ours) & (set(theirs) | _owners(every, set(verified.file_list()))))
    known = [{name: key for name in names if (key := normalised(name)) is not None} for names in (ours, theirs)]
    if not all(known):
        return None
    return sorted(name for name, key in known[0].items() if key in set(known[1].values()))


def _owners(people: People, files: set[str]) -> set[str]:
    """Names of the identities that have one of these pictures."""
    hit = np.array([name in files for name in people.file_names], np.bool_)
    return {people.names[row] for row in np.unique(people.identities[hit]).tolist() if row >= 0}


def _shared_names(people: People, names: list[str], source: str) -> list[str]:
    """Identities to train on whose name is also one of another set's, which is logged with the number compared."""
    present = sorted(people.present())
    theirs = {key for name in names if (key := normalised(name)) is not None}
    ours = {name: key for name in present if (key := normalised(name)) is not None}
    if not ours or not theirs:
        which = people.source if not ours else source
        log.info(
            "identities of %s and %s cannot be compared: %s has %s; see to it yourself that nobody is in both",
            people.source,
            source,
            which,
            "numbers, not names" if (present if not ours else names) else "no names",
        )
        return []
    shared = [name for name, key in ours.items() if key in theirs]
    log.info(
        "identities of %s and %s compared by name (%d and %d names): %d in both",
        people.source,
        source,
        len(ours),
        len(theirs),
        len(shared),
    )
    return shared

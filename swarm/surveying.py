"""The probe on joining: while a member begins to train, see how fast it computes and what its link carries, and say what to expect.

Computing is measured on micro-batches that count, the link by the network side (`peers.link_survey`), so nothing waits for it. Whatever
goes wrong ends in the log, and the member trains on.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import replace

from peers.training_peer import MemberView, SwarmView
from protocols.errors import SwarmError, UserError
from protocols.ids import PeerId
from protocols.link_figures import LinkFigures
from protocols.planning import Link, Machine, Members, predict
from protocols.planning.suiting import how_it_suits
from protocols.planning.values import MEASURED_LINK_SHARE, PROCESSING_S_PER_ELEM, UPDATE_S_PER_ELEM
from protocols.runspec import RunSpec
from swarm.connection import Connection
from swarm.monitoring.survey import Expected, Survey, survey_block, write_survey
from swarm.planning import processing_s_per_elem, settings_of, workload_of
from swarm.training.trainer import Trainer

log = logging.getLogger(__name__)

WITHIN_S = 30.0
"""From the first micro-batch that counts, or a helper's start: what is not known then is left out."""

ENOUGH_S = 10.0
"""Of computing."""

_LOOK_EVERY_S = 0.1
_CODEC_ELEMS = 2**20
_STOP_WITHIN_S = 1.0


class Companions:
    """Who is there, and how fast the others compute: the median of what they said, as each word is of a few micro-batches only.

    Args:
        me: this member.
    """

    def __init__(self, me: PeerId) -> None:
        self._me = me
        self._said: dict[PeerId, list[float]] = {}
        self._view = SwarmView()

    def note(self, view: SwarmView) -> None:
        """The swarm as it is now; as often as one likes."""
        self._view = view
        for member in self._others():
            said = self._said.setdefault(member.peer, [])
            if member.samples_per_s > 0 and (not said or said[-1] != member.samples_per_s):  # records come once a second
                said.append(member.samples_per_s)

    def members(self) -> tuple[int, int, int, float | None]:
        """Members, clients, helpers, and what the others compute together; None if one of them has not said it."""
        others = self._others()
        own_role = next((member.role for member in self._view.members if member.peer == self._me), "trainer")
        roles = [own_role, *(member.role for member in others)]
        speeds = [self._said[member.peer] for member in others if member.role != "helper"]
        known = sum(statistics.median(said) for said in speeds) if all(speeds) else None
        return len(roles), roles.count("client"), roles.count("helper"), known

    def _others(self) -> list[MemberView]:
        return [member for member in self._view.members if member.peer != self._me and member.phase != "leaving"]


@contextmanager
def surveying(connection: Connection, trainer: Trainer, show: Callable[[str], None]) -> Iterator[None]:
    """Measure beside training, in a thread that this context owns.

    Args:
        connection: to the run; up by now.
        trainer: about to run in this thread.
        show: called once, from the other thread, with what was found, in lines for people.
    """
    stopping = threading.Event()
    worker = threading.Thread(target=_survey, args=(connection, trainer, show, stopping), name="survey", daemon=True)
    worker.start()
    try:
        yield
    finally:
        stopping.set()
        worker.join(_STOP_WITHIN_S)


def _survey(connection: Connection, trainer: Trainer, show: Callable[[str], None], stopping: threading.Event) -> None:
    """Owner of the thread."""
    try:
        companions = Companions(connection.peer)
        link = _measured(connection, trainer, companions, stopping)
        if link is None:
            return
        companions.note(connection.handle.view())
        found = _composed(connection, trainer, link, companions)
        show(survey_block(found))
        write_survey(connection.config.survey_path, found)
    except UserError as error:
        log.warning("what was measured is not kept: %s", error)
    except SwarmError as error:
        log.info("nothing is measured, as the peer is stopping: %s", error)
    except Exception:
        log.exception("measuring this machine failed, which is a bug of ours; training goes on")


def _measured(connection: Connection, trainer: Trainer, companions: Companions, stopping: threading.Event) -> LinkFigures | None:
    """Wait until there is enough, or it is time; None if the member leaves before."""
    link, helper = connection.network.link, connection.config.role == "helper"
    until_s: float | None = None
    while not stopping.wait(_LOOK_EVERY_S):
        computed = trainer.pace.computed
        companions.note(connection.handle.view())
        if until_s is None and (computed.turns or helper):
            until_s = time.monotonic() + WITHIN_S
        late = until_s is not None and time.monotonic() >= until_s
        if late or (link.done() and (helper or computed.seconds >= ENOUGH_S)):
            return _link_so_far(link)
    return None


def _link_so_far(link: Future[LinkFigures]) -> LinkFigures:
    if not link.done():
        return LinkFigures(note="The link was not measured in time.")
    try:
        return link.result()
    except CancelledError:
        return LinkFigures(note="The link was not measured.")


def _composed(connection: Connection, trainer: Trainer, link: LinkFigures, companions: Companions) -> Survey:
    spec, config = connection.spec, connection.config
    peers, clients, helpers, others = companions.members()
    survey = Survey(
        run_name=spec.run.name,
        run_id=str(connection.signed_spec.run_id),
        measured_at=time.time(),
        role=config.role,
        device=trainer.device_type,
        up_bytes_per_s=link.up_bytes_per_s,
        down_bytes_per_s=link.down_bytes_per_s,
        rtt_s=link.rtt_s,
        link_members=link.members,
        link_moved_bytes=link.moved_bytes,
        link_note=link.note,
        peers=peers,
        clients=clients,
        helpers=helpers,
        others_samples_per_s=others,
        processing_s_per_elem=processing_s_per_elem(spec.averaging.codec, _CODEC_ELEMS),
    )
    samples_per_s = trainer.pace.computed.samples_per_s
    if config.role == "helper" or samples_per_s is None:
        return survey
    workload, update_s = workload_of(spec), trainer.update_s
    survey = survey.model_copy(
        update={
            "micro_batch_samples": trainer.micro_batch_samples,
            "samples_per_s": samples_per_s,
            "flops_per_s": samples_per_s * workload.flops_per_sample,
            "update_s_per_elem": None if update_s is None else update_s / workload.parameters,
        }
    )
    return survey.model_copy(update={"expected": expected_of(survey, spec)})


def machine_of(survey: Survey) -> Machine | None:
    """For planning; None if nothing was computed."""
    if survey.flops_per_s is None:
        return None
    processing, update = survey.processing_s_per_elem, survey.update_s_per_elem
    return Machine(
        flops_per_s=survey.flops_per_s,
        micro_batch_samples=survey.micro_batch_samples or 1,
        processing_s_per_elem=PROCESSING_S_PER_ELEM if processing is None else processing,
        update_s_per_elem=UPDATE_S_PER_ELEM if update is None else update,
    )


def link_of(survey: Survey) -> Link | None:
    """For planning; None if the link is not known in both directions."""
    slower = survey.slower_bytes_per_s
    if slower is None or slower < 1:
        return None
    link = Link(bytes_per_s=slower, share=MEASURED_LINK_SHARE)
    return link if survey.rtt_s is None else replace(link, rtt_s=survey.rtt_s)


def members_of(survey: Survey) -> Members:
    """For planning: who was there."""
    return Members(peers=survey.peers, clients=survey.clients, helpers=survey.helpers, others_samples_per_s=survey.others_samples_per_s)


def expected_of(survey: Survey, spec: RunSpec) -> Expected | None:
    """What a run will be like by what was measured; None if that is too little, or nobody could be dialled."""
    machine, link = machine_of(survey), link_of(survey)
    if machine is None or link is None or survey.clients >= survey.peers:
        return None
    members, workload, settings = members_of(survey), workload_of(spec), settings_of(spec)
    found = predict(members, machine, link, workload, settings)
    return Expected(
        epoch_s=found.epoch_s,
        share_computing=found.utilisation,
        up_bytes=found.up_bytes,
        down_bytes=found.down_bytes,
        share_of_swarm=1 / members.computing(found.sample_s),
        verdict=how_it_suits(members, machine, link, workload, settings),
    )

"""Clustering against subjects drawn with known distances, an exhaustive graph, and rules that must hold."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from tasks.people import cluster as module
from tasks.people.cluster import cluster

WITHIN, BETWEEN = 0.33, 0.8  # Euclidean distances, as dlib's are


def people(sizes: list[int], seed: int = 0, between: float = BETWEEN) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(descriptors, subject) in random order."""
    rng = np.random.default_rng(seed)
    person = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = rng.normal(size=(len(sizes), 128)) * between / np.sqrt(256)
    vectors = centres[person] + rng.normal(size=(len(person), 128)) * WITHIN / np.sqrt(256)
    return vectors.astype(np.float32), person


def partition(labels: NDArray[np.int64]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)}


def run(vectors: NDArray[np.float32], **options: NDArray[np.int64]) -> NDArray[np.int64]:
    return cluster(vectors, max_distance=0.5, neighbours=64, **options)


def test_subjects_of_any_number_of_images() -> None:
    vectors, person = people([1] * 30 + [2, 3, 5, 8, 13, 21, 34, 55, 5, 5, 5])
    labels = run(vectors)
    assert partition(labels) == partition(person)
    for label in np.unique(labels):
        assert label == np.flatnonzero(labels == label).min(), "a person is named by the first face"


def test_only_faces_of_one_subject_stay_together() -> None:
    vectors, _ = people([50])
    assert len(np.unique(run(vectors))) == 1


def test_a_chain_of_look_alikes_is_not_one_subject() -> None:
    """Ten subjects in a row, each close enough to the next for a plain threshold, which makes one of all."""
    rng = np.random.default_rng(3)
    steps = np.zeros((10, 128))
    steps[np.arange(10), np.arange(10)] = 1
    centres = np.cumsum(steps, axis=0) * 0.36
    person = np.repeat(np.arange(10), 6)
    vectors = (centres[person] + rng.normal(size=(60, 128)) * 0.2 / np.sqrt(256)).astype(np.float32)
    close = cdist(vectors, vectors) <= 0.5
    assert close[person[:, None] + 1 == person[None]].any(), "the people do touch"
    assert partition(run(vectors)) == partition(person)


def test_equal_images_are_one_subject_whatever_their_distance_of_zero() -> None:
    vectors, _ = people([1] * 20)
    assert partition(run(np.concatenate([vectors, vectors[:1]]))) >= {frozenset({0, 20})}


def test_two_faces_of_one_image_are_two_subjects() -> None:
    vectors, person = people([6, 6])
    twin = np.flatnonzero(person == 0)[:2]
    images = np.arange(12)
    images[twin[1]] = images[twin[0]]
    labels = run(vectors, images=images)
    assert labels[twin[0]] != labels[twin[1]]
    assert len(np.unique(labels[person == 1])) == 1, "others are as they were"


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_faces(count: int) -> None:
    vectors, _ = people([1] * count)
    assert run(vectors.reshape(count, 128)).tolist() == list(range(count))


def test_a_broken_descriptor_is_refused_by_its_row() -> None:
    vectors, _ = people([3])
    vectors[1, 5] = np.nan
    with pytest.raises(ValueError, match="descriptor 1 "):
        run(vectors)


def test_known_subjects_stay_and_new_faces_join_them_or_found_others() -> None:
    vectors, person = people([5] * 20, seed=1)
    old = (person < 15) & (np.random.default_rng(0).random(100) < 0.7)
    known = np.where(old, person, -1)
    labels = run(vectors, known=known)
    assert (labels[old] == person[old]).all()
    seen = np.isin(person, person[old])
    assert (labels[seen] == person[seen]).all(), "new pictures of known people"
    assert (labels[~seen] >= 15).all()
    assert partition(labels) == partition(person)


def test_two_known_subjects_are_never_joined() -> None:
    """One subject whose images were given to two: new ones go to the nearer, and nobody moves."""
    vectors, _ = people([12])
    known = np.array([0] * 4 + [1] * 4 + [-1] * 4)
    labels = run(vectors, known=known)
    assert labels[:8].tolist() == known[:8].tolist()
    assert set(labels[8:].tolist()) & {0, 1}


def test_one_at_a_time_ends_where_all_at_once_does() -> None:
    vectors, person = people([4] * 8, seed=5)
    known = np.full(32, -1)
    for row in range(32):
        labels = run(vectors[: row + 1], known=known[: row + 1])
        known[row] = labels[row]
        assert (labels == known[: row + 1]).all()
    assert partition(known) == partition(person)


def test_order_of_the_faces_does_not_matter() -> None:
    vectors, _ = people([5] * 30, seed=2, between=0.5)
    order = np.random.default_rng(0).permutation(150)
    labels = np.empty(150, np.int64)
    labels[order] = run(vectors[order])
    assert partition(labels) == partition(run(vectors))


@pytest.mark.slow
def test_the_graph_of_large_archives_finds_what_the_exhaustive_search_does(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = people([5] * 400, seed=4, between=0.6)
    exact = run(vectors)
    monkeypatch.setattr(module, "EXACT", 100)
    graph = run(vectors)
    assert len(partition(graph) & partition(exact)) >= 0.99 * len(partition(exact))
    assert (graph == run(vectors)).all()


@pytest.mark.slow
@pytest.mark.parametrize("exact", [100, 100_000])
def test_threads_do_not_matter(exact: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT", exact)
    vectors, _ = people([5] * 200, between=0.45)
    before, answers = faiss.omp_get_max_threads(), set()
    try:
        for threads in (1, 2, 3):
            faiss.omp_set_num_threads(threads)
            answers.add(run(vectors).tobytes())
    finally:
        faiss.omp_set_num_threads(before)
    assert len(answers) == 1

#!/usr/bin/env python3
"""P, R, nDCG, PSP and coverage in plain numpy on the test labels of LF-AmazonTitles-131K with random scores.

    tests/peers/metrics.py PATH/tst_X_Y.txt > tests/index/metrics_golden.inc

prints the numbers that Metrics.EqualsNumpyOnRealLabels in tests/index/metrics_test.cpp compares with, to
1e-9. Needs numpy. Every query ranks its true labels and 150 random ones; scores are counter-based random
numbers, so that both sides make the same lists. The label counts of the training set are not in the file:
those of the test labels stand in, with the real N of 294,805.
"""
import sys

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix64(z):
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def random_bits(seed, stream, counter):
    """kernels/base/random.h"""
    with np.errstate(over="ignore"):
        z = mix64(np.uint64(seed) + GOLDEN)
        z = mix64(z + np.uint64(stream) * GOLDEN + GOLDEN)
        return mix64(z + np.asarray(counter, np.uint64) * GOLDEN + GOLDEN)


def read(path):
    with open(path) as f:
        rows, labels = map(int, f.readline().split())
        truth = [np.array([int(e.split(":")[0]) for e in line.split()], np.int64) for line in f]
    assert len(truth) == rows
    return truth, labels


def ranked(truth, labels):
    lists = []
    for q, y in enumerate(truth):
        drawn = (random_bits(1, q, np.arange(150)) % np.uint64(labels)).astype(np.int64)
        candidates = np.union1d(y, drawn)
        scores = (random_bits(2, q, candidates) >> np.uint64(40)).astype(np.int64)
        lists.append(candidates[np.lexsort((candidates, -scores))][:100])
    return lists


def evaluate(lists, truth, labels, counts, n, a, b):
    c = (np.log(n) - 1) * (b + 1) ** a
    w = 1 + c * (counts + b) ** -a
    sums = {}
    seen, covered = np.zeros(labels, bool), np.zeros(labels, bool)

    def add(name, value):
        sums[name] = sums.get(name, 0.0) + value

    queries = 0
    for top, y in zip(lists, truth):
        if len(y) == 0:
            continue
        queries += 1
        hit = np.isin(top, y)
        best = np.sort(w[y])[::-1]
        for k in (1, 3, 5):
            add(f"P@{k}", hit[:k].sum() / k)
            add(f"gained@{k}", w[top[:k][hit[:k]]].sum() / k)
            add(f"best@{k}", best[:k].sum() / k)
        for k in (1, 3, 5, 10, 100):
            add(f"R@{k}", hit[:k].sum() / len(y))
        discount = 1 / np.log2(np.arange(2, 7))
        add("nDCG@5", (hit[:5] * discount[: len(hit[:5])]).sum() / discount[: min(5, len(y))].sum())
        seen[y] = True
        covered[top[:5][hit[:5]]] = True
    out = [sums[f"P@{k}"] / queries for k in (1, 3, 5)]
    out += [sums[f"R@{k}"] / queries for k in (1, 3, 5, 10, 100)]
    out += [sums["nDCG@5"] / queries]
    out += [sums[f"gained@{k}"] / sums[f"best@{k}"] for k in (1, 3, 5)]
    out += [covered.sum() / seen.sum()]
    return [100 * float(x) for x in out]


def main():
    truth, labels = read(sys.argv[1])
    counts = np.bincount(np.concatenate(truth), minlength=labels).astype(float)
    lists = ranked(truth, labels)
    print("// Printed by tests/peers/metrics.py.")
    print("// {{A, B}, {P@1,3,5, R@1,3,5,10,100, nDCG@5, PSP@1,3,5, coverage}}")
    for a, b in ((0.55, 1.5), (0.6, 2.6)):
        values = evaluate(lists, truth, labels, counts, 294805, a, b)
        lines = [", ".join(map(repr, part)) for part in (values[:5], values[5:9], values[9:])]
        print("{{%g, %g},\n {%s}}," % (a, b, ",\n  ".join(lines)))


main()

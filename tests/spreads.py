"""A stand-in for the workers of a `Spread`."""

import pickle


def wildly(rng):
    """A `Spread` that does everything in any order and some of it twice, as if on other machines."""

    def spread(function, arguments, done=lambda result: None, most=None):
        function, arguments, results = pickle.dumps(function), [*map(pickle.dumps, arguments)], {}
        numbers = [*range(len(arguments)), *rng.sample(range(len(arguments)), len(arguments) // 2)]
        rng.shuffle(numbers)
        for number in numbers:
            is_new = number not in results
            results[number] = pickle.loads(pickle.dumps(pickle.loads(function)(pickle.loads(arguments[number]))))
            if is_new:
                done(results[number])
        yield from (results[number] for number in range(len(arguments)))

    return spread

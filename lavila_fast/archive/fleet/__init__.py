"""Several workers, each with a model and readers of its own, see the clips of one run.

A run hands out stretches of videos as it does to threads that decode, but what comes back are rows. They are written
by the run itself, in its one journal, so that what is done is known in one place: whoever dies, nothing is lost or
doubled.

    worker     sees clips of several stretches at once, wherever it lives
    local      workers that are processes of this machine
    cluster    workers on a Ray cluster
    crew       all of them: who gets which stretch, and what happens when one dies
"""

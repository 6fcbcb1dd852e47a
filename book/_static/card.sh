# IE-KD in a room without a network.  One line per step; # starts a comment.
# (The book runs these lines in its tests.)

# 1  AT HOME, with a network, in the checkout of the book. "stick" is a folder, or a USB stick.
git clone . stick/iekd                              # library, chapters, records
pip download -d stick/wheels ".[book]" setuptools   # all packages; on a machine like those in the room
iekd handout stick/lesson --chapters teacher-and-student,factor   # without solutions
# make book; cp -R _build/html stick/site           # the book to read: open stick/site/index.html

# 2  ON EACH MACHINE, once, without a network.
python3 -m venv iekd-env
. iekd-env/bin/activate
pip install --no-index --find-links stick/wheels -e "stick/iekd[book]"
cp -R stick/lesson .

# 3  IN THE LESSON.
. iekd-env/bin/activate
export OMP_NUM_THREADS=1        # one thread per process: faster when several run
export IEKD_RUNS=$PWD/runs      # or a shared folder: every run is trained only once
iekd doctor                     # what works here
jupyter lab lesson              # the chapters; Ctrl-C ends it

# 4  WITHOUT A NOTEBOOK.
iekd run --preset smoke --method ie-ft --seed 3                    # one run: seconds
iekd sweep --preset smoke --method kd,ft --seed 0..1 --jobs 2      # four, and their teachers
iekd table --preset smoke                                          # the results

# 5  HOME AGAIN: pack all runs of this machine into one file, and add them to the store at home.
iekd bundle results.tar
iekd merge results.tar          # at home

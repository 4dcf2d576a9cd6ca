"""What people ask about to learn something: topic -> task -> three pieces of advice."""

TOPICS = {
    "programming": {
        "reverse a list in Python": (
            "Call `items.reverse()` to turn the list around in place.",
            "Write `items[::-1]` when you need a new list and the old one must stay.",
            "Use `reversed(items)` in a loop, since it copies nothing.",
        ),
        "undo the last commit in git": (
            "Run `git reset --soft HEAD~1` to keep the changes staged.",
            "Use `git revert HEAD` if the commit has already been pushed.",
            "Look at `git reflog` when something seems to be lost.",
        ),
        "count the words in a text file": (
            "Run `wc -w file.txt` in a terminal for a quick answer.",
            "Read the file in Python and take `len(text.split())`.",
            "Pass the words to `collections.Counter` to see how often each one occurs.",
        ),
        "find a slow part of my program": (
            "Measure first, for example with `python -m cProfile`.",
            "Sort the output by cumulative time and look at the top five lines.",
            "Change one thing at a time and measure again.",
        ),
        "remove duplicates from a spreadsheet": (
            "Load the sheet with `pandas.read_excel` and call `drop_duplicates()`.",
            "Name the columns that decide with `subset=` and keep the first row.",
            "Compare the number of rows before and after, so that nothing is lost unseen.",
        ),
        "store dates in a database": (
            "Store them in UTC, in a column with a time zone.",
            "Convert to local time only when you show them.",
            "Avoid text columns, because they sort in the wrong order.",
        ),
        "write my first unit test": (
            "Pick one small function and write down an input whose answer you know.",
            "Put `assert add(2, 3) == 5` into a function whose name begins with `test_`.",
            "Run `pytest` and break the function once, to see that the test fails.",
        ),
        "read an error message": (
            "Read the last line first, because it names the kind of error.",
            "Go up to the first line that belongs to your own file.",
            "Print the variables of that line and compare them with what you expected.",
        ),
    },
    "languages": {
        "learn twenty new words a day": (
            "Make cards with a picture or a sentence instead of a translation.",
            "Repeat them after one day, three days and a week.",
            "Use five of them in a message to a friend.",
        ),
        "understand films in Spanish": (
            "Begin with Spanish subtitles rather than with English ones.",
            "Watch one scene three times and write down what you hear.",
            "Choose a series with everyday talk, so that the words return.",
        ),
        "improve my English pronunciation": (
            "Record yourself reading ten lines and compare it with a speaker.",
            "Speak along with a short clip until the rhythm fits.",
            "Work on one sound a week, such as the th in think.",
        ),
        "write a polite email in French": (
            "Open with Madame or Monsieur and use vous throughout.",
            "Put the request into the conditional, as in pourriez-vous.",
            "Close with a set phrase such as bien cordialement.",
        ),
        "remember German articles": (
            "Learn each noun together with its article and a colour.",
            "Use the endings: words in -ung are feminine, those in -chen are neuter.",
            "Say a short phrase aloud, such as der kleine Hund.",
        ),
        "read my first novel in Italian": (
            "Pick a book that you already know in your own language.",
            "Look up only the words that come back three times.",
            "Read ten pages a day and listen to the audiobook as well.",
        ),
        "practise Chinese characters": (
            "Learn the most frequent radicals first, about fifty of them.",
            "Write each character ten times in the right order of strokes.",
            "Review with spaced cards, five minutes in the morning and in the evening.",
        ),
        "keep up a language after the course": (
            "Find a partner and talk for half an hour every week.",
            "Switch your phone and one podcast to the language.",
            "Keep a diary of three sentences a day.",
        ),
    },
    "music": {
        "tune a guitar by ear": (
            "Take the fifth fret of the low string as the note of the next one.",
            "Use the fourth fret when you come from the G to the B string.",
            "Tune up to the note and not down, so that the string stays tight.",
        ),
        "start to play the piano as an adult": (
            "Practise for fifteen minutes a day rather than two hours on Sunday.",
            "Learn each hand alone and put them together slowly.",
            "Choose one piece you love and one that is easy.",
        ),
        "sing higher notes": (
            "Warm up with lip trills for five minutes.",
            "Keep the jaw loose and think of the sound going forward.",
            "Stop when it hurts, and drink water at room temperature.",
        ),
        "read sheet music": (
            "Learn the lines of the treble clef with a phrase of your own.",
            "Clap the rhythm before you play the notes.",
            "Name ten notes aloud every day until it takes you no thought.",
        ),
        "keep a steady beat": (
            "Practise with a metronome at a slow pace.",
            "Tap your foot and count aloud while you play.",
            "Raise the tempo by four beats once three runs were clean.",
        ),
        "write a simple song": (
            "Begin with three chords, for instance C, G and A minor.",
            "Hum over them and record whatever comes.",
            "Write a chorus of two lines that you would sing in the shower.",
        ),
        "record vocals at home": (
            "Hang a duvet behind the singer to take out the echo.",
            "Stand a hand's width from the microphone, with a pop filter between.",
            "Leave some room below the red mark when you set the level.",
        ),
        "choose a first violin": (
            "Rent one for a few months before you buy.",
            "Let a teacher check the size with your arm stretched out.",
            "Ask for new strings and a proper bridge before you judge the sound.",
        ),
    },
    "photography": {
        "take sharp photos in low light": (
            "Open the aperture as far as it goes, such as f/1.8.",
            "Raise the ISO to 1600 before the shutter gets slower than 1/60.",
            "Lean against a wall and breathe out while you press.",
        ),
        "photograph the stars": (
            "Use a tripod, a wide lens and an exposure of fifteen seconds.",
            "Focus by hand on a bright star with the screen magnified.",
            "Go out at new moon, far from the lights of the town.",
        ),
        "take a flattering portrait": (
            "Place the person next to a window, with the light from the side.",
            "Focus on the eye that is closer to you.",
            "Step back and zoom in, because a short distance stretches the nose.",
        ),
        "sort thousands of old pictures": (
            "Put them into folders by year and month first.",
            "Delete the blurred ones in one quick pass.",
            "Keep two copies, one of them outside your home.",
        ),
        "clean a camera lens": (
            "Blow off the dust before anything touches the glass.",
            "Breathe on the lens and wipe it in circles from the middle.",
            "Use a microfibre cloth, and never the corner of a shirt.",
        ),
        "photograph a running dog": (
            "Set the shutter to 1/1000 and the focus to continuous.",
            "Kneel down, so that the camera is at the height of its eyes.",
            "Take a burst as it comes towards you and keep the best frame.",
        ),
        "scan film negatives": (
            "Dust each strip with a soft brush and wear cotton gloves.",
            "Scan at 3200 dpi and save the result as TIFF.",
            "Set the black point by hand, so that the shadows keep their detail.",
        ),
        "choose my first camera": (
            "Hold it in your hand first, because weight decides how often you take it along.",
            "Spend more on the lens than on the body.",
            "Look at used models that are two or three years old.",
        ),
    },
}

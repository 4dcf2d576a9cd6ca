"""What people ask about from day to day: topic -> task -> three pieces of advice."""

TOPICS = {
    "health": {
        "fall asleep faster": (
            "Go to bed at the same time every day, also at weekends.",
            "Put the phone into another room an hour before you lie down.",
            "Keep the bedroom at about 18 degrees and as dark as you can.",
        ),
        "ease a stiff neck after desk work": (
            "Raise the screen until its upper edge is level with your eyes.",
            "Stand up every thirty minutes and roll your shoulders slowly.",
            "See a doctor if the pain goes down into an arm or lasts for weeks.",
        ),
        "drink enough water during the day": (
            "Put a one-litre bottle on your desk and empty it by noon.",
            "Drink a glass with each meal and one when you get up.",
            "Look at the colour of your urine: pale yellow is about right.",
        ),
        "start running again after a long break": (
            "Alternate two minutes of running with two minutes of walking.",
            "Run three times a week and add no more than a tenth each week.",
            "Buy shoes that fit in the evening, when your feet are a little larger.",
        ),
        "treat a mild sunburn": (
            "Cool the skin with a damp cloth for ten minutes at a time.",
            "Use a plain lotion with aloe and drink more water than usual.",
            "Stay out of the sun until it heals, and see a doctor about blisters.",
        ),
        "cut down on sugar": (
            "Replace sweet drinks first, because they hold the most sugar.",
            "Read the label and compare the grams per 100 g.",
            "Eat fruit and nuts when the craving comes, about the same time each day.",
        ),
        "remove a splinter from a finger": (
            "Wash your hands and clean the tweezers with alcohol.",
            "Pull the splinter out at the angle at which it went in.",
            "Clean the spot again, and ask a doctor if it turns red and warm.",
        ),
        "calm down before an exam": (
            "Breathe in for four seconds and out for six, ten times.",
            "Write your worries on paper and put it away.",
            "Arrive early with water and a watch, so that nothing has to be rushed.",
        ),
    },
    "travel": {
        "pack for a week with one small bag": (
            "Take three shirts and two pairs of trousers in colours that match.",
            "Roll your clothes and put socks into your shoes.",
            "Wear the heaviest shoes and the jacket on the way.",
        ),
        "get over jet lag": (
            "Shift your bedtime by an hour a day before you leave.",
            "Go outside in the morning light as soon as you arrive.",
            "Avoid naps of more than twenty minutes in the first days.",
        ),
        "find cheap train tickets in Europe": (
            "Book about three months ahead, when the saver fares come out.",
            "Compare the website of each national railway with one search engine.",
            "Travel on a Tuesday or a Wednesday, and take a regional train for short legs.",
        ),
        "spend two days in Lisbon": (
            "Walk through Alfama in the morning, before the trams get full.",
            "Take the train to Belem for the monastery and the custard tarts.",
            "Watch the sunset from the viewpoint at Graca.",
        ),
        "stay safe while hiking alone": (
            "Tell somebody your route and the time when you will be back.",
            "Carry a map, a whistle, a warm layer and more water than you need.",
            "Turn around at the agreed hour, even if the summit looks close.",
        ),
        "travel by plane with a baby": (
            "Feed the baby during take-off and landing, which helps the ears.",
            "Book a seat at the front row, where a cot can be fixed.",
            "Bring twice as many nappies as you expect to use.",
        ),
        "choose travel insurance": (
            "Check first what your bank card and health plan already cover.",
            "Look for at least a million in medical costs and for transport home.",
            "Read what is excluded, such as diving or older illnesses.",
        ),
        "order food in a country whose language I do not speak": (
            "Learn the words for please, thank you and without meat.",
            "Point at a dish that looks good on another table and smile.",
            "Carry a card that names your allergies in the local language.",
        ),
    },
    "money": {
        "make a monthly budget": (
            "Write down your income and the fixed costs such as rent.",
            "Set aside a tenth on payday, before you spend anything.",
            "Check the plan on the same day each month and adjust one number at a time.",
        ),
        "pay off a credit card": (
            "Stop using the card until the balance is zero.",
            "Pay the debt with the highest interest first and the minimum on the others.",
            "Ask the bank for a lower rate, because it often agrees.",
        ),
        "save money on heating": (
            "Lower the thermostat by one degree, which saves about six percent.",
            "Seal the gaps around windows and doors with foam tape.",
            "Air the rooms for five minutes with open windows instead of tilting them.",
        ),
        "compare two job offers": (
            "Add up salary, pension and bonus for a whole year.",
            "Subtract the cost and the hours of the way to work.",
            "Talk to a future colleague about how a normal week looks.",
        ),
        "buy a used car": (
            "Look at the service book and compare the mileage with its entries.",
            "Start the engine cold and look for smoke and for leaks underneath.",
            "Pay a mechanic for an inspection before you sign.",
        ),
        "teach a child about pocket money": (
            "Pay a small fixed sum on the same day every week.",
            "Use three jars: one to spend, one to save and one to give.",
            "Let small mistakes happen, because they are cheap lessons.",
        ),
        "ask for a raise": (
            "Collect three results of the past year, with numbers.",
            "Find out what the role pays elsewhere and name a precise sum.",
            "Choose a calm moment, and agree on a date for the answer.",
        ),
        "build an emergency fund": (
            "Aim for three months of your fixed costs.",
            "Keep the money in a separate account with daily access.",
            "Set up a standing order on payday, however small it is.",
        ),
    },
    "work": {
        "write a cover letter": (
            "Open with the one reason why this job fits you.",
            "Show one result with a number for each thing the advert asks for.",
            "Keep it to a single page and end with when you could start.",
        ),
        "prepare for a job interview": (
            "Read the last three news items about the company.",
            "Practise two stories about a problem that you solved.",
            "Prepare three questions of your own about the team.",
        ),
        "run a shorter meeting": (
            "Send the question that has to be decided a day ahead.",
            "Invite only those who decide or who know the facts.",
            "Write down who does what by when in the last five minutes.",
        ),
        "give a colleague honest feedback": (
            "Speak in private and describe one thing that you saw.",
            "Say what effect it had, and ask how they see it.",
            "Agree on one small change and thank them for listening.",
        ),
        "stop putting off a big task": (
            "Cut it into steps that take less than half an hour.",
            "Do the first step before you open your mail.",
            "Set a timer for 25 minutes and take a break after it.",
        ),
        "give a talk without notes": (
            "Learn the first and the last sentence by heart.",
            "Turn each slide into one picture and one thought.",
            "Rehearse aloud three times, once in front of a friend.",
        ),
        "keep my inbox under control": (
            "Read mail at two fixed times of the day.",
            "Answer at once what takes less than two minutes.",
            "Unsubscribe from three newsletters a day until the noise is gone.",
        ),
        "settle into a new team": (
            "Meet everybody for fifteen minutes and ask what they work on.",
            "Write down what puzzles you in the first weeks, since nobody else sees it any more.",
            "Finish one small thing early, so that people can rely on you.",
        ),
    },
}

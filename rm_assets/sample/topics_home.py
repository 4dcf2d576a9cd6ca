"""What people ask about at home: topic -> task -> three pieces of advice, which begin with a verb."""

TOPICS = {
    "cooking": {
        "cook fluffy rice": (
            "Rinse the rice in cold water until the water runs clear.",
            "Use one and a half cups of water for each cup of rice and keep the lid closed.",
            "Let the pot rest for ten minutes off the heat before you stir it.",
        ),
        "bake a simple loaf of bread": (
            "Mix 500 g of flour, 350 g of water, 10 g of salt and a spoonful of yeast.",
            "Let the dough rise until it has doubled, which takes about two hours in a warm room.",
            "Bake it at 230 degrees for 35 minutes and listen for a hollow sound when you tap it.",
        ),
        "poach an egg": (
            "Keep the water just below the boil, with small bubbles at the bottom of the pan.",
            "Slide the egg in from a small cup, close to the surface.",
            "Lift it out after three minutes and let it drain on a towel.",
        ),
        "make a tomato sauce from scratch": (
            "Soften an onion and some garlic in olive oil over a low heat.",
            "Add a tin of tomatoes, a pinch of sugar and half a teaspoon of salt.",
            "Let the sauce simmer for half an hour, then tear in some basil.",
        ),
        "roast vegetables so that they turn crisp": (
            "Cut the vegetables into pieces of the same size and dry them well.",
            "Spread them out on the tray, because crowded vegetables steam instead of roasting.",
            "Roast them at 220 degrees and turn them once after fifteen minutes.",
        ),
        "keep fresh herbs alive in the kitchen": (
            "Stand the stems in a glass of water, like flowers.",
            "Cover the leaves loosely with a bag and change the water every other day.",
            "Freeze what is left over in olive oil, in an ice cube tray.",
        ),
        "cook lentil soup for six people": (
            "Count on 400 g of lentils and two litres of stock for six bowls.",
            "Fry carrots, celery and cumin first, so that the soup has a base.",
            "Finish it with lemon juice just before you serve it.",
        ),
        "save a dish that is too salty": (
            "Add more of the unsalted ingredients, such as beans, potatoes or rice.",
            "Stir in a little cream or yoghurt, which softens the taste of salt.",
            "Balance the rest with a squeeze of lemon, and taste again before serving.",
        ),
    },
    "gardening": {
        "grow tomatoes on a balcony": (
            "Choose a bush variety and a pot that holds at least fifteen litres.",
            "Give the plant six hours of sun and water it at the roots every morning.",
            "Feed it once a week as soon as the first flowers open.",
        ),
        "get rid of aphids on my roses": (
            "Spray the leaves with a strong jet of water early in the day.",
            "Wipe the shoots with mild soapy water and repeat this after four days.",
            "Leave the ladybirds alone, since one larva eats dozens of aphids a day.",
        ),
        "start a compost heap": (
            "Mix two parts of dry leaves or cardboard with one part of kitchen scraps.",
            "Keep it as damp as a wrung-out sponge and turn it every two weeks.",
            "Leave out meat and cheese, because they attract rats.",
        ),
        "prune an old apple tree": (
            "Prune on a dry day in late winter, before the buds swell.",
            "Take out dead and crossing branches first, and stop at a quarter of the crown.",
            "Cut just outside the collar of the branch, so that the wound can close.",
        ),
        "repot an orchid": (
            "Wait until the flowers have dropped and new roots begin to show.",
            "Shake off the old bark and cut away the roots that are soft and brown.",
            "Set it into coarse bark in a clear pot and water it after a few days.",
        ),
        "sow a lawn in autumn": (
            "Rake the soil flat and let it settle for a week.",
            "Scatter about 30 g of seed per square metre in two directions.",
            "Keep the surface moist for three weeks and mow it when it is 8 cm tall.",
        ),
        "keep slugs away from my lettuce": (
            "Water in the morning instead of the evening, so that the soil is dry at night.",
            "Put a collar of copper tape around the bed and keep the leaves off it.",
            "Collect the slugs at dusk from under a wooden board.",
        ),
        "attract more bees to a small garden": (
            "Plant lavender, thyme and borage, which flower one after another.",
            "Leave a patch of bare soil, where wild bees can nest.",
            "Set out a shallow dish of water with a few stones to land on.",
        ),
    },
    "cleaning": {
        "remove a coffee stain from a shirt": (
            "Rinse the stain from the back with cold water as soon as you can.",
            "Work in a drop of washing-up liquid and leave it for five minutes.",
            "Wash the shirt as usual, and keep it out of the dryer until the stain has gone.",
        ),
        "descale a kettle": (
            "Fill the kettle half with water and half with white vinegar.",
            "Bring it to the boil, switch it off and wait for an hour.",
            "Rinse it three times and boil fresh water once before you make tea.",
        ),
        "clean windows without streaks": (
            "Wash the glass with warm water and a dash of vinegar.",
            "Pull a rubber blade from top to bottom and wipe it after each stroke.",
            "Choose a cloudy day, because sun dries the water too fast.",
        ),
        "get a burnt pan clean again": (
            "Cover the bottom with water and two spoonfuls of baking soda.",
            "Let it simmer for ten minutes and then cool down.",
            "Scrape with a wooden spoon, which does not scratch the metal.",
        ),
        "unclog a kitchen sink": (
            "Try a plunger first, with the overflow covered by a wet cloth.",
            "Put a bucket under the trap, unscrew it and clean it with a brush.",
            "Flush the pipe with hot water, and pour no more fat down the drain.",
        ),
        "keep moths out of a wardrobe": (
            "Empty the wardrobe and vacuum the corners and the cracks.",
            "Wash woollen clothes at 60 degrees, or freeze them for three days.",
            "Hang up cedar wood and renew its scent every few months.",
        ),
        "sort out a messy garage": (
            "Take everything out and make three piles: keep, give away and recycle.",
            "Fix shelves to the wall, so that the floor stays free.",
            "Label each box on the side that you can see.",
        ),
        "wash a down jacket": (
            "Close all zips and use a small dose of down detergent.",
            "Wash it at 30 degrees with an extra rinse and a slow spin.",
            "Dry it on low heat with two tennis balls, which break up the clumps.",
        ),
    },
    "pets": {
        "train a puppy to come when called": (
            "Practise in a quiet room with a short call and a tasty reward.",
            "Add distance and distraction only when it works nine times out of ten.",
            "Call cheerfully and praise every return, however late it is.",
        ),
        "introduce a kitten to an older cat": (
            "Keep them in separate rooms for a week and swap their blankets.",
            "Feed them on both sides of a closed door, so that each scent means food.",
            "Let them meet for a few minutes a day, and end it while both are calm.",
        ),
        "keep a rabbit happy in a flat": (
            "Offer hay at all times, because it keeps the teeth short.",
            "Give it at least three hours outside the cage every day.",
            "Think about a second rabbit, since they are unhappy alone.",
        ),
        "set up an aquarium for beginners": (
            "Start with at least 60 litres, which forgives more mistakes.",
            "Let the filter run for four weeks before the first fish moves in.",
            "Test the water for nitrite and change a third of it each week.",
        ),
        "brush a dog's teeth": (
            "Use toothpaste for dogs, because ours contains fluoride.",
            "Begin with a finger and a few seconds, and reward every try.",
            "Brush the outer sides in small circles, three times a week.",
        ),
        "stop a parrot from screaming": (
            "Answer the quiet sounds and wait out the loud ones.",
            "Give it twelve hours of sleep in a dark room.",
            "Hide food in paper and wood, so that it has work to do.",
        ),
        "get my cat used to a travel box": (
            "Leave the box open in the living room with a blanket inside.",
            "Feed the cat in it for a week before you close the door.",
            "Drive around the block once, and give a treat afterwards.",
        ),
        "help a nervous dog through fireworks": (
            "Walk the dog long before dark and close the curtains early.",
            "Play steady music and stay in the same room.",
            "Ask the vet about medicine a few weeks ahead if the fear is strong.",
        ),
    },
}

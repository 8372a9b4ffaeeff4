"""Word lists the generators draw from: short, common, concrete."""

from __future__ import annotations

from random import Random


def split_words(text: str) -> list[str]:
    """The words of a line."""
    return text.split()


NAMES = split_words(
    "Ann Ben Cleo Dan Eva Finn Gus Hana Ida Jon Kim Leo Mia Ned Ola Pia Quin Rex Sue Tom Amy Bob "
    "Carl Dora Emma "
    "Fred Gina Hugo Iris Jack Kate Lucy Max Nina Omar Paul Rosa Sam Tina Vera Will Zoe"
)
THINGS = split_words(
    "apples books cards coins eggs fish hats keys nuts pens rings shells stamps toys balls cups "
    "dolls bricks cakes "
    "flowers stones leaves candles pencils marbles tickets buttons oranges lemons letters"
)
WORDS = split_words(
    "apple bread candle dragon eleven forest garden hammer island jungle kitten lemon mirror "
    "needle orange pencil "
    "quartz rabbit silver tunnel umbrella velvet window yellow zebra banana cheese little summer "
    "winter coffee pepper "
    "butter planet bottle letter puzzle ribbon saddle tomato strawberry blueberry raspberry "
    "cherry mississippi coconut "
    "pineapple elephant giraffe monkey tiger lion horse mouse house river mountain ocean desert "
    "island valley bridge "
    "castle tower church school teacher doctor farmer sailor soldier king queen prince princess "
    "knight wizard witch "
    "spoon fork knife plate table chair carpet curtain ceiling door floor kitchen bedroom "
    "bathroom cellar attic "
    "morning evening night noon midnight today tomorrow yesterday monday tuesday wednesday "
    "thursday friday saturday "
    "sunday january february march april may june july august september october november december "
    "spring autumn "
    "red blue green black white brown purple pink grey gold happy sad angry tired hungry thirsty "
    "brave clever quiet "
    "loud quick slow small large tall short long round square heavy light warm cold hot dry wet "
    "clean dirty new old "
    "run walk jump swim climb read write sing dance sleep dream think speak listen laugh cry eat "
    "drink cook bake "
    "bird fish dog cat cow pig sheep goat duck goose chicken frog snake turtle spider bee ant "
    "butterfly flower tree "
    "leaf root seed grass stone sand water fire wind rain snow ice cloud sky sun moon star earth "
    "world music paper "
    "book story poem song picture color number word sentence question answer problem reason "
    "address committee "
    "balloon hello goodbye mammal success necessary accommodate occurrence parallel bookkeeper "
    "assess"
)
WORDS = sorted(set(WORDS))
COLORS = split_words("red blue green black white brown purple pink yellow orange grey")
ANIMALS = split_words(
    "cat dog bird fox bear mouse rabbit horse frog duck lion tiger owl goat hen fish"
)
FOODS = split_words("bread cheese soup cake apples nuts honey berries milk tea pie rice")
PLACES = split_words("forest garden river hill farm village lake beach castle cave market school")
ADJECTIVES = split_words(
    "little big old young brave shy clever kind happy sad hungry tired lonely funny quiet"
)
CITIES = split_words(
    "Rome Oslo Lima Cairo Delhi Paris London Berlin Madrid Tokyo Boston Chicago Vienna "
    "Prague Athens Dublin"
)
DAYS = split_words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = split_words(
    "January February March April May June July August September October November December"
)
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

_ONSETS = split_words("b br c ch d dr f fl g gr h j k kl l m n p pl qu r s sh sl st t tr v w y z")
_VOWELS = split_words("a e i o u ai ea ee oa ou")
_CODAS = ["", "", "", *split_words("b ck d g l ll m n nd ng p r rt s sk st t th x")]


def invented(r: Random) -> str:
    """A word of one to three syllables that most likely nobody has met: to copy it is all that can
    be done with it."""
    parts = (_ONSETS, _VOWELS, _CODAS) * r.randint(1, 3)
    word = "".join(map(r.choice, parts))
    return invented(r) if word in _HELD else word


# ---- what only evaluations of calls draw from ----------------------------------------------------

NEW_CITIES = split_words(
    "Accra Ankara Atlanta Baghdad Baku Bamako Bangkok Barcelona Basel Beijing Beirut Belfast "
    "Belgrade Bergen Bern Bilbao Bogota Bordeaux Bremen Brisbane Bristol Brussels Bucharest "
    "Budapest Calgary Caracas Cardiff Cologne Copenhagen Cordoba Cork Dakar Dallas Damascus Denver "
    "Detroit Doha Dresden Durban Edinburgh Florence Frankfurt Geneva Genoa Ghent Glasgow Granada "
    "Graz Halifax Hamburg Hanoi Harare Havana Helsinki Houston Istanbul Jakarta Kabul Kampala "
    "Karachi Kigali Kingston Krakow Kyoto Lagos Leeds Leipzig Lisbon Liverpool Luanda Lusaka Lyon "
    "Malaga Manila Marseille Melbourne Memphis Miami Milan Minsk Montreal Moscow Mumbai Munich "
    "Nairobi Nantes Naples Odessa Osaka Ottawa Palermo Perth Porto Quito Rabat Riga Riyadh "
    "Rotterdam Salzburg Santiago Seattle Seoul Seville Sofia Stockholm Sydney Taipei Tallinn "
    "Tbilisi Tehran Toronto Tripoli Tunis Turin Utrecht Valencia Venice Warsaw Wellington Zagreb "
    "Zurich"
)
NEW_NAMES = split_words(
    "Ada Alan Alice Anton Bella Boris Bruno Cara Cecil Clara David Dennis Edgar Elena Eric Ethel "
    "Felix Flora Frank Grace Greta Harold Helen Henry Irene Ivan James Jasper Julia Karl Laura "
    "Leon Linda Louis Mabel Marco Martin Monica Nadia Noah Olga Oscar Peter Philip Rachel Ralph "
    "Robert Ruth Simon Stella Theo Thomas Ursula Victor Wanda Walter Xavier Yvonne"
)
NEW_WORDS = split_words(
    "anchor arrow basket beach blanket bucket button cabin camera canal canoe carrot cellar chain "
    "circus clock compass copper corner cotton cradle crystal cushion daisy diary dinner doorbell "
    "drawer drum engine envelope fabric feather fence ferry fiddle flute fountain garage garlic "
    "ginger glove guitar harbor harvest helmet honey hotel insect jacket jewel kettle ladder "
    "lantern library lizard luggage magnet maple market medal melody museum napkin notebook olive "
    "oven oyster pantry parcel parrot passport pebble pepper piano pillow pirate pocket porch "
    "postcard pumpkin quilt radio railway raincoat recipe rocket sailboat salad scarf seashell "
    "shelter shovel skate soap statue stove suitcase sweater teapot theater thunder trumpet turkey "
    "vase village violin wagon walnut whistle willow workshop"
)
NEW_WORDS = sorted(set(NEW_WORDS) - set(WORDS))
NEW_ROOMS = split_words(
    "attic basement closet corridor dining den entrance foyer garage garden greenhouse gym laundry "
    "library lobby loft lounge nursery office pantry parlor patio porch shed stable staircase "
    "storeroom studio study terrace veranda workshop"
)
NEW_FOODS = split_words(
    "bagels bananas beans biscuits burgers carrots cherries cookies crackers cucumbers dumplings "
    "figs grapes kebabs lemons melons muffins noodles olives omelets onions oranges pancakes "
    "peaches pears pickles pizzas plums potatoes pretzels salads sandwiches sausages scones steaks "
    "tacos tomatoes tarts waffles wraps"
)
NEW_CURRENCIES = split_words("krones rupees pesos rand lira zloty forints dinars")
_HELD = frozenset(
    word.lower()
    for pool in (NEW_CITIES, NEW_NAMES, NEW_WORDS, NEW_ROOMS, NEW_FOODS, NEW_CURRENCIES)
    for word in pool
)

"""Word lists the generators draw from: short, common, concrete."""

from __future__ import annotations


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

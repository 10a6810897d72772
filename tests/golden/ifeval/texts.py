"""Texts of this project that responses are made from."""

ENGLISH = [
    "The river rose in the night, and by morning the lower garden was under water. Mr. Haddon, who had seen it twice "
    "before, carried the chairs up the stairs. Nobody spoke. At 7.45 a.m. the bridge went. \"Well,\" said his wife, "
    "\"that is that.\" She made tea for everyone, i.e. for the two of them and the dog.",
    "An engine needs three things: fuel, air and a spark. Without one of them it stops! Why, then, did ours run for "
    "ten minutes with the key in my pocket? Dr. Lane of the U.S. Navy gave an answer. It was long, full of figures "
    "(see fig. 3), and it cost $40.50. We paid it.",
    "Winter came early to the island. Boats lay on the sand, and the shop of J. R. Moss Ltd. closed at noon. In Dec. the "
    "post came once a week... or not at all. People read old papers, e.g. the news of last June, and played music until "
    "the lamps went out. Was it dull? No. It was quiet.",
    "To bake bread you mix flour, water, salt and yeast. Knead the dough for approx. 10 minutes. Let it rest; it should "
    "double in size. St. John's bakery adds rye, etc. and a little honey. Bake it at 220 degrees until the crust is "
    "brown. Don't open the door before that!",
    "She CANNOT have known about the letter, I think. It was sent to No. 12, not to No. 21, and the doctor had moved to "
    "Washington D.C. the year before. WE'LL never find out. Prof. Ames vs. the city of N.Y. is another matter: there, the "
    "papers exist. 'Tis a pity, as my aunt used to say.",
    "Light travels at 299,792 km per second. Sound is slower by far. If you count five seconds between the flash and "
    "the thunder, the storm is about a mile away. NASA and the ESA measure such things. So can you, with a watch and a "
    "window! Version 2.0 of this text will say more.",
]

SNIPPETS = [
    "```python\ndef f(x):\n    return x.y if x else None\n```",
    "| a | b |\n|---|---|\n| 1.5 | NO |",
    "See https://example.org/a?b=c.d or write to me.too@example.org. Thanks!",
    "\U0001f600\U0001f600 WOW!!! \u2026 really?!",
    "1) First. 2) Second. 3) Third.",
    "A. B. C. D. etc. etc.",
    "**Note:** *never* do this (ever.)",
    "\u201cStop!\u201d he cried. \u00abWhy?\u00bb she asked.",
    "x = 3.14; y = -2; z = x/y...",
    "Q: Who? A: J.F.K. Q: When? A: Nov. 22.",
    "e\u0301t\u00e9 na\u00efve co\u00f6perate \u0130stanbul \u1e9e",
    "U.S.A. vs. U.K. at 5 p.m. Then came the rest.",
    "'quoted' \"double\" `code` ''two''",
    "I'M SURE THAT I'LL GONNA GO, CAN'T I?",
    "-- a -- b --- c",
    "#1 item & 50% off @ home $5",
]

LANGUAGES = {
    "en": "The weather is fine today, and we are going to walk along the river until the evening.",
    "de": "Das Wetter ist heute schön, und wir gehen bis zum Abend am Fluss spazieren. Morgen soll es regnen.",
    "fr": "Il fait beau aujourd'hui et nous allons nous promener au bord de la rivière jusqu'au soir. Demain il pleuvra.",
    "es": "Hoy hace buen tiempo y vamos a pasear junto al río hasta la noche. Mañana va a llover mucho.",
    "pt": "Hoje o tempo está bom e vamos passear junto ao rio até à noite. Amanhã não vai ser assim.",
    "it": "Oggi fa bel tempo e andiamo a passeggiare lungo il fiume fino a sera. Domani invece pioverà.",
    "nl": "Het weer is vandaag mooi en we gaan tot de avond langs de rivier wandelen. Morgen regent het.",
    "sv": "Vädret är fint i dag och vi går längs floden till kvällen. I morgon ska det regna mycket.",
    "fi": "Sää on tänään kaunis ja kävelemme joen rannalla iltaan asti. Huomenna sataa.",
    "pl": "Dzisiaj jest ładna pogoda i idziemy na spacer nad rzekę aż do wieczora. Jutro będzie padać.",
    "tr": "Bugün hava güzel ve akşama kadar nehir kıyısında yürüyeceğiz. Yarın yağmur yağacak.",
    "vi": "Hôm nay trời đẹp và chúng tôi sẽ đi dạo dọc bờ sông cho đến tối. Ngày mai trời sẽ mưa.",
    "sw": "Leo hali ya hewa ni nzuri na tutatembea kando ya mto hadi jioni. Kesho mvua itanyesha.",
    "ru": "Сегодня хорошая погода, и мы будем гулять вдоль реки до вечера. Завтра будет дождь.",
    "uk": "Сьогодні гарна погода, і ми будемо гуляти вздовж річки до вечора. Завтра буде дощ.",
    "bg": "Днес времето е хубаво и ще се разхождаме край реката до вечерта. Утре ще вали дъжд.",
    "ar": "الطقس جميل اليوم وسوف نمشي على ضفة النهر حتى المساء. غدا سوف تمطر.",
    "fa": "امروز هوا خوب است و ما تا عصر کنار رودخانه قدم می‌زنیم. فردا باران می‌بارد.",
    "ur": "آج موسم اچھا ہے اور ہم شام تک دریا کے کنارے چلیں گے۔ کل بارش ہو گی۔",
    "he": "מזג האוויר יפה היום ואנחנו נטייל לאורך הנהר עד הערב. מחר ירד גשם.",
    "el": "Ο καιρός είναι ωραίος σήμερα και θα περπατήσουμε δίπλα στο ποτάμι μέχρι το βράδυ.",
    "hi": "आज मौसम अच्छा है और हम शाम तक नदी के किनारे टहलेंगे। कल बारिश होगी।",
    "mr": "आज हवामान चांगले आहे आणि आम्ही संध्याकाळपर्यंत नदीच्या काठी फिरणार आहोत.",
    "ne": "आज मौसम राम्रो छ र हामी साँझसम्म नदीको किनारमा हिँड्नेछौं। भोलि पानी पर्नेछ।",
    "bn": "আজ আবহাওয়া ভালো এবং আমরা সন্ধ্যা পর্যন্ত নদীর ধারে হাঁটব। কাল বৃষ্টি হবে।",
    "ta": "இன்று வானிலை நன்றாக இருக்கிறது, நாங்கள் மாலை வரை ஆற்றங்கரையில் நடப்போம்.",
    "te": "ఈ రోజు వాతావరణం బాగుంది మరియు మేము సాయంత్రం వరకు నది ఒడ్డున నడుస్తాము.",
    "kn": "ಇಂದು ಹವಾಮಾನ ಚೆನ್ನಾಗಿದೆ ಮತ್ತು ನಾವು ಸಂಜೆಯವರೆಗೆ ನದಿಯ ದಡದಲ್ಲಿ ನಡೆಯುತ್ತೇವೆ.",
    "gu": "આજે હવામાન સારું છે અને અમે સાંજ સુધી નદીના કિનારે ચાલીશું.",
    "pa": "ਅੱਜ ਮੌਸਮ ਚੰਗਾ ਹੈ ਅਤੇ ਅਸੀਂ ਸ਼ਾਮ ਤੱਕ ਨਦੀ ਦੇ ਕੰਢੇ ਤੁਰਾਂਗੇ।",
    "ml": "ഇന്ന് കാലാവസ്ഥ നല്ലതാണ്, ഞങ്ങൾ വൈകുന്നേരം വരെ നദിക്കരയിൽ നടക്കും.",
    "th": "วันนี้อากาศดีและเราจะเดินเล่นริมแม่น้ำจนถึงเย็น พรุ่งนี้ฝนจะตก",
    "ja": "今日は天気がいいので、夕方まで川沿いを散歩します。明日は雨が降るでしょう。",
    "ko": "오늘은 날씨가 좋아서 저녁까지 강가를 산책할 거예요. 내일은 비가 올 거예요.",
    "zh-cn": "今天天气很好，我们要沿着河边散步到晚上。明天会下雨。",
}

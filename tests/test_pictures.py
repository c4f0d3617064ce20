"Picture files that people really have: read right, skipped by name, or refused in one sentence."
import os, struct, zlib
import numpy as np
import pytest
from PIL import Image, ImageDraw
from tlcourse.base import BadInput
from tlcourse.data import target
from tlcourse.folders import list_folder
from tlcourse.pictures import Unreadable, fit_picture, read_picture, read_pictures, value_range

@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv('TLCOURSE_CACHE', str(tmp_path_factory.mktemp('cache')))

def scene(seed=0, size=(48,40)):
    "A picture like no other: coarse noise, enlarged"
    a = np.random.RandomState(seed).randint(0, 255, (5,6,3)).astype(np.uint8)
    return Image.fromarray(a).resize(size, Image.Resampling.BICUBIC)

def folder(root, parts=('train','valid','test'), classes=('cat','dog'), n=6, seed=0):
    for p in parts:
        for c in classes:
            for i in range(n):
                seed += 1
                f = root/p/c/f'{i}.png'
                f.parent.mkdir(parents=True, exist_ok=True)
                scene(seed).save(f)
    return root

def pixels(im): return np.asarray(im)

def png(a, depth, colour):
    "A PNG of any bit depth, which Pillow cannot write; a: rows of bytes"
    def chunk(t, d): return struct.pack('>I', len(d)) + t + d + struct.pack('>I', zlib.crc32(t + d))
    h, w, raw = a.shape[0], a.shape[1], b''.join(b'\0' + o.tobytes() for o in a)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, depth, colour, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(raw)) + chunk(b'IEND', b''))

# Read right

def test_cmyk(tmp_path):
    a = np.zeros((8,8,4), np.uint8); a[...,1] = 255; a[:4,:,3] = 128
    for f in ('a.tif', 'a.jpg'):
        Image.fromarray(a, 'CMYK').save(tmp_path/f, **(dict(quality=100) if f == 'a.jpg' else {}))
    for f, tol in (('a.tif',0), ('a.jpg',4)):
        p = pixels(read_picture(tmp_path/f)).astype(int)
        assert p.shape == (8,8,3) and abs(p[7,4] - [255,0,255]).max() <= tol and abs(p[0,4] - [127,0,127]).max() <= tol

@pytest.mark.parametrize('ending', ['png', 'tif'])
def test_16_bit_grey(tmp_path, ending):
    v = np.array([[0,255,256,32768,65535]]*3, np.uint16)
    Image.fromarray(v).save(tmp_path/f'a.{ending}')
    assert (pixels(read_picture(tmp_path/f'a.{ending}'))[1] == np.array([0,0,1,128,255])[:,None]).all()

def test_16_bit_colour(tmp_path):
    a = np.zeros((2,2,3), '>u2'); a[...,0], a[...,1] = 65535, 0x8040
    (tmp_path/'a.png').write_bytes(png(a, 16, 2))
    assert (pixels(read_picture(tmp_path/'a.png')) == [255,128,0]).all()

def test_32_bit_is_skipped(tmp_path):
    Image.fromarray(np.full((4,4), 1e6, np.float32)).save(tmp_path/'f.tif')
    Image.fromarray(np.full((4,4), 10**6, np.int32)).save(tmp_path/'i.tif')
    for f in 'fi':
        with pytest.raises(Unreadable, match='8 or 16 bits'): read_picture(tmp_path/f'{f}.tif')

def test_palette(tmp_path):
    im = Image.new('P', (4,4), 1); im.putpalette([0,0,0, 10,200,30, 255,255,255])
    for f in ('a.png', 'a.gif', 'a.bmp'):
        im.save(tmp_path/f)
        assert (pixels(read_picture(tmp_path/f)) == [10,200,30]).all()
    im.putpixel((0,0), 0); im.save(tmp_path/'t.png', transparency=1)
    p = pixels(read_picture(tmp_path/'t.png')).copy()
    assert (p[0,0] == 0).all()
    p[0,0] = 255
    assert (p == 255).all() # Transparent: white

def test_alpha_on_white(tmp_path):
    a = np.zeros((2,3,4), np.uint8); a[...,0] = 200; a[:,0,3], a[:,1,3], a[:,2,3] = 0, 128, 255
    for f in ('a.png', 'a.webp'):
        Image.fromarray(a, 'RGBA').save(tmp_path/f, **(dict(lossless=True, exact=True) if f == 'a.webp' else {}))
        p = pixels(read_picture(tmp_path/f)).astype(int)[0]
        assert (p[0] == 255).all() and (p[2] == [200,0,0]).all() and abs(p[1] - [227,127,127]).max() <= 1
    Image.fromarray(np.array([[[0,0],[0,255]]], np.uint8), 'LA').save(tmp_path/'la.png')
    assert pixels(read_picture(tmp_path/'la.png'))[0,:,0].tolist() == [255,0]
    Image.new('RGB', (2,2), (1,2,3)).save(tmp_path/'key.png', transparency=(1,2,3))
    assert (pixels(read_picture(tmp_path/'key.png')) == 255).all()

@pytest.mark.parametrize('tag,turn',
                         [(1,None), (2,Image.Transpose.FLIP_LEFT_RIGHT), (3,Image.Transpose.ROTATE_180),
                          (4,Image.Transpose.FLIP_TOP_BOTTOM),
                                      (5,Image.Transpose.TRANSPOSE), (6,Image.Transpose.ROTATE_90),
                                      (7,Image.Transpose.TRANSVERSE), (8,Image.Transpose.ROTATE_270)])
def test_orientation(tmp_path, tag, turn):
    im, e = scene(size=(12,8)), Image.Exif()
    e[0x0112] = tag
    (im.transpose(turn) if turn is not None else im).save(tmp_path/'a.png', exif=e)
    assert (pixels(read_picture(tmp_path/'a.png')) == pixels(im)).all()

def test_orientation_of_jpeg_on_the_way_in(tmp_path):
    im, e = Image.new('RGB', (1600,1200), (255,0,0)), Image.Exif()
    ImageDraw.Draw(im).rectangle((0,0,1600,599), fill=(0,0,255)) # Blue above, red below
    e[0x0112] = 6
    im.transpose(Image.Transpose.ROTATE_90).save(tmp_path/'a.jpg', exif=e, quality=95)
    x = read_pictures([tmp_path/'a.jpg'], 64)[0][0].astype(int)
    assert abs(x[:,8,32] - [0,0,255]).max() < 5 and abs(x[:,56,32] - [255,0,0]).max() < 5

def test_first_frame(tmp_path):
    fs = [Image.new('RGB', (6,6), c) for c in ((255,0,0), (0,255,0), (0,0,255))]
    for f in ('a.gif', 'a.png', 'a.webp'):
        fs[0].save(tmp_path/f, save_all=True, append_images=fs[1:], **(dict(lossless=True) if f == 'a.webp' else {}))
        assert (pixels(read_picture(tmp_path/f)) == [255,0,0]).all()

def test_one_pixel_and_thin(tmp_path):
    Image.new('RGB', (1,1), (9,8,7)).save(tmp_path/'a.png'); Image.new('L', (3000,2), 77).save(tmp_path/'b.png')
    x, kept, skipped = read_pictures([tmp_path/'a.png', tmp_path/'b.png'], 32)
    assert (x[0] == np.array([9,8,7])[:,None,None]).all() and (x[1] == 77).all() and not skipped

def test_fit_is_the_centre():
    a = np.zeros((30,90,3), np.uint8); a[:,30:60] = 200
    assert (pixels(fit_picture(Image.fromarray(a), 10))[:,1:-1] == 200).all()
    im = scene(size=(32,32))
    assert fit_picture(im, 32) is im

# Skipped, counted and named

def nasty(d):
    "Six files that cannot be used, and what is said of them"
    scene(99).save(d/'whole.jpg', quality=95); b = (d/'whole.jpg').read_bytes(); (d/'whole.jpg').unlink()
    (d/'zero.jpg').write_bytes(b''); (d/'text.jpg').write_text('not a picture\n'*50)
    (d/'cut.jpg').write_bytes(b[:len(b)//2])
    scene(98).save(d/'bad.png'); p = bytearray((d/'bad.png').read_bytes()); i = p.index(b'IDAT') + 4
    p[i:i+40] = bytes(40); (d/'bad.png').write_bytes(p)
    Image.new('1', (20000,20000)).save(d/'huge.png')
    (d/'phone.heic').write_bytes(b'....ftypheic' + bytes(50))
    return {'zero.jpg':'empty file', 'text.jpg':'not a picture', 'cut.jpg':'truncated', 'bad.png':'damaged',
            'huge.png':'over 100 megapixels', 'phone.heic':'HEIC'}

def test_skipped_and_named(tmp_path):
    said = nasty(folder(tmp_path)/'train'/'cat')
    t = target(tmp_path, size=32)
    got = dict(t.report.skipped)
    assert set(got) == {f'train/cat/{f}' for f in said}
    for f, why in said.items(): assert why in got[f'train/cat/{f}'], got
    text = str(t.report)
    assert f'skipped {len(said)} files' in text and all(f in text for f in said)
    assert (len(t.train), len(t.valid), len(t.test)) == (12, 12, 12)

def test_header_is_enough(tmp_path):
    "A few bytes that promise 16 billion pixels are turned away unread; so are 101 megapixels, and 99 are not"
    def header(w, h):
        return (png(np.zeros((1,1,1), np.uint8), 8, 0)[:16] + struct.pack('>II', w, h)
                + png(np.zeros((1,1,1), np.uint8), 8, 0)[24:])
    def crc(b): return b[:29] + struct.pack('>I', zlib.crc32(b[12:29])) + b[33:]
    for w, h, why in ((2**17,2**17,'over 100'), (10100,10000,'over 100'), (9900,10000,'truncated|damaged')):
        (tmp_path/'a.png').write_bytes(crc(header(w, h)))
        with pytest.raises(Unreadable, match=why): read_picture(tmp_path/'a.png')

def test_unicode_and_space(tmp_path):
    root = folder(tmp_path/'mes photos é 写真', parts=('',), classes=('un chat', '犬'), n=10)
    (root/'un chat'/'0.png').rename(root/'un chat'/'ça – là.png')
    t = target(root, size=32)
    assert t.classes == ['un chat','犬'] and len(t.train) + len(t.valid) + len(t.test) == 20 and not t.report.skipped

def test_others_left_alone(tmp_path):
    root = folder(tmp_path)
    (root/'train'/'cat'/'notes.txt').write_text('x'); (root/'train'/'cat'/'.hidden.png').write_text('x')
    (root/'train'/'.git').mkdir(); (root/'out').mkdir()
    t = target(root, size=32)
    assert not t.report.skipped and 'left alone: 1 .txt file' in str(t.report)
    assert 'out/ lies beside train/ and was left alone' in str(t.report)

# Refused

def refused(path, *words, **kw):
    with pytest.raises(BadInput) as e: target(path, size=32, **kw)
    s = str(e.value)
    assert '\n' not in s and all(w in s for w in words), s

def test_class_left_empty(tmp_path):
    root = folder(tmp_path)
    for f in (root/'train'/'dog').iterdir(): f.write_bytes(b'')
    for p in ('valid','test'):
        for f in (root/p/'dog').iterdir(): f.write_bytes(b'')
    refused(root, "class 'dog'", 'empty file')

def test_no_training_picture_left(tmp_path):
    root = folder(tmp_path)
    for f in (root/'train'/'dog').iterdir(): f.write_bytes(b'')
    refused(root, "class 'dog'", 'train')

def test_refused_folders(tmp_path):
    refused(tmp_path/'no such', 'no folder')
    (tmp_path/'empty').mkdir(); refused(tmp_path/'empty', 'is empty')
    refused(folder(tmp_path/'one', classes=('cat',)), 'one class only', "'cat'")
    (tmp_path/'loose').mkdir(); scene().save(tmp_path/'loose'/'a.png')
    refused(tmp_path/'loose', 'no class folders', "'a.png'")
    refused(folder(tmp_path/'few', parts=('',), n=2), '2 pictures to split into 3 parts')
    (folder(tmp_path/'hole', parts=('',))/'emu').mkdir(); refused(tmp_path/'hole', "class 'emu' has no picture")
    (tmp_path/'a.zip').write_bytes(b'PK'); refused(tmp_path/'a.zip', 'is a file')
    ok = folder(tmp_path/'ok', parts=('',))
    for kw in (dict(valid_pct=0), dict(valid_pct=1.2), dict(test_pct=-.1), dict(valid_pct=.5, test_pct=.5),
               dict(valid_pct='x')): refused(ok, 'pct', **kw)

def test_new_class_in_test(tmp_path):
    root = folder(tmp_path)
    (root/'test'/'emu').mkdir(); scene(7).save(root/'test'/'emu'/'a.png')
    refused(root, "class 'emu' has pictures in test but none in train")

# split.csv

def listed(root, lines, head='path,label,split'):
    folder(root, parts=('',), n=10)
    (root/'split.csv').write_text('\n'.join([head, *lines]) + '\n', encoding='utf-8')
    return root

def rows(**parts): return [f'{c}/{i}.png,{c},{p}' for p, ii in parts.items() for c in ('cat','dog') for i in ii]

def test_csv(tmp_path):
    t = target(listed(tmp_path/'a', rows(train=range(5), val=range(5,7), test=range(7,10))), size=32)
    assert (len(t.train), len(t.valid), len(t.test)) == (10, 4, 6)
    assert t.report.notes == ['split.csv: val is read as valid']
    t = target(listed(tmp_path/'b', rows(train=range(5), test=range(5,10))), size=32)
    assert (len(t.train), len(t.valid), len(t.test)) == (8, 2, 10) and 'became the validation part' in str(t.report)
    t = target(listed(tmp_path/'c', rows(train=range(5), valid=range(5,10))), size=32)
    assert (len(t.train), len(t.valid), len(t.test)) == (8, 2, 10) and 'valid is kept as the test' in str(t.report)

def test_bad_csv(tmp_path):
    good = rows(train=range(5), test=range(5,10))
    refused(listed(tmp_path/'a', good + ['cat/77.png,cat,train', 'dog/78.png,dog,test']),
            '2 files that are not there', "'cat/77.png'")
    refused(listed(tmp_path/'b', good + ['cat/0.png,cat,holdout']),
            "unknown split names: 'holdout' (1 line)", 'train, valid and test')
    refused(listed(tmp_path/'c', [','.join(o.split(',')[::2]) for o in good], head='path,split'), "no column 'label'",
            'path, split')
    refused(listed(tmp_path/'d', good + ['cat/0.png,dog,train']), "labelled 'dog' here and 'cat' above")
    refused(listed(tmp_path/'e', []), 'no pictures')
    (listed(tmp_path/'f', good)/'split.csv').write_bytes(b'path,label,split\n\xff\xfe'); refused(tmp_path/'f', 'UTF-8')
    refused(listed(tmp_path/'g', rows(test=range(10))), 'none in train')

# Copies

def test_same_picture_in_train_and_test(tmp_path):
    root = folder(tmp_path)
    (root/'train'/'cat'/'again.png').write_bytes((root/'test'/'cat'/'2.png').read_bytes())
    Image.open(root/'test'/'dog'/'1.png').save(root/'valid'/'dog'/'again.bmp')
    t = target(root, size=64)
    assert t.report.copies == [('train/cat/again.png','train','test/cat/2.png','test','same'),
                               ('valid/dog/again.bmp','valid','test/dog/1.png','test','same')]
    assert '1 train picture is also in test' in str(t.report) and (len(t.train), len(t.valid)) == (13, 13)
    d = target(root, size=64, drop_duplicates=True)
    assert (len(d.train), len(d.valid), len(d.test), d.report.dropped) == (12, 12, 12, 2)
    assert d.pixel_hash != t.pixel_hash

def test_near_copy(tmp_path):
    root = folder(tmp_path)
    im = Image.open(root/'test'/'cat'/'2.png')
    im.resize((96,80)).point(lambda v: min(255, v+8)).save(root/'train'/'cat'/'near.jpg', quality=50)
    assert [c[4] for c in target(root, size=64).report.copies] == ['near']

def test_bursts_stay_together(tmp_path):
    root = folder(tmp_path, parts=('',), n=12)
    for c in ('cat','dog'):
        for i in range(4): Image.open(root/c/f'{i}.png').save(root/c/f'{i} again.jpg', quality=60)
    for seed in range(3):
        t = target(root, size=64, seed=seed)
        assert not t.report.copies and '8 pictures are copies' in str(t.report) and '--groups' in str(t.report)

# On the way in (what is kept of it: test_cache)

def test_predict_sees_what_training_saw(tmp_path):
    root = folder(tmp_path)
    big = scene(5, (1500,1100)); big.save(root/'valid'/'cat'/'big.jpg', quality=92)
    t = target(root, size=64)
    i = [p.name for p in t.valid.paths].index('big.jpg')
    x = t.dls(device='cpu').test_dl([root/'valid'/'cat'/'big.jpg']).one_batch()[0]
    assert (x[0]*255).round().byte().equal(t.valid.x[i])

def test_listing_opens_nothing(tmp_path):
    root = folder(tmp_path)
    for f in root.rglob('*.png'): f.write_bytes(b'')
    assert len(list_folder(root)[0]) == 36

# More than 8 bits: the range of the whole set

def deep_folder(root, ending='png', bits=12, n=8, colour=False):
    "Two classes of grey noise of `bits` bits in containers of 16; -> their 8-bit twins in a folder of their own"
    for c in ('cat','dog'):
        for i in range(n):
            v = np.asarray(scene(100*(c == 'dog') + i, (32,32)).convert('RGB' if colour else 'L')).astype(np.uint16)
            a = v << (bits - 8)
            for d in (root/'deep'/c, root/'plain'/c): d.mkdir(parents=True, exist_ok=True)
            if colour: (root/'deep'/c/f'{i}.png').write_bytes(colour_png(a))
            else: Image.fromarray(a).save(root/'deep'/c/f'{i}.{ending}')
            Image.fromarray(v.astype(np.uint8)).convert('RGB').save(root/'plain'/c/f'{i}.png')
    return root/'deep', root/'plain'

def colour_png(a):
    "A PNG of 16-bit colours"
    def chunk(t, d): return struct.pack('>I', len(d)) + t + d + struct.pack('>I', zlib.crc32(t + d))
    h, w, c = a.shape
    raw = b''.join(b'\0' + o.astype('>u2').tobytes() for o in a)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR',
                                         struct.pack('>IIBBBBB', w, h, 16, {3:2, 4:6}[c], 0, 0,
                                                     0)) + chunk(b'IDAT', zlib.compress(raw)) + chunk(b'IEND', b''))

def colour_tiff(a):
    "An uncompressed TIFF of 16-bit bands, as many as there are"
    h, w, c = a.shape
    data, bits = a.astype('<u2').tobytes(), struct.pack(f'<{c}H', *[16]*c)
    tags = [(256,1,w), (257,1,h), (258,c,122), (259,1,1), (262,1,2), (273,1,122+len(bits)), (277,1,c), (278,1,h),
            (279,1,len(data))]
    return (b'II*\0' + struct.pack('<IH', 8, 9)
            + b''.join(struct.pack('<HHII', t, 4 if t in (273,279) else 3, n, v)
                       for t,n,v in tags) + struct.pack('<I', 0) + bits + data)

@pytest.mark.parametrize('bits,how',
                         [(12,dict()), (12,dict(ending='tif')), (10,dict()), (16,dict()), (8,dict(ending='tif')),
                          (12,dict(colour=True)), (16,dict(colour=True))])
def test_the_range_of_the_set_is_used_and_said(tmp_path, bits, how): # I2
    deep, plain = deep_folder(tmp_path, bits=bits, **how)
    t, twin = target(deep, size=32), target(plain, size=32)
    assert t.report.range == (0, 2**bits - 1) and twin.report.range == (0, 255)
    assert t.train.x.equal(twin.train.x) and t.valid.x.equal(twin.valid.x)
    assert (t._test_arrays[0] == twin._test_arrays[0]).all()
    assert any(f'16 pictures have more than 8 bits' in o and f'0 to {2**bits - 1:,} became 0 to 255' in o
               for o in t.report.notes)
    assert t.report.to_dict()['range'] == [0, 2**bits - 1] and not any('bits' in o for o in twin.report.notes)
    again = target(deep, size=32) # From the store
    assert again.report.range == t.report.range and again.report.notes == t.report.notes

def test_a_dark_picture_of_a_set_stays_dark(tmp_path):
    deep, _ = deep_folder(tmp_path)
    Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32,32)//4).save(deep/'cat'/'dark.png')
    t = target(deep, size=32)
    assert t.report.range == (0, 4095) and '1 picture is almost black, such as dark.png' in str(t.report)
    assert read_pictures([deep/'cat'/'dark.png'], 32, top=t.report.range[1])[0].max() == 15

def test_a_hot_pixel_widens_no_range(tmp_path): # I2
    deep, plain = deep_folder(tmp_path)
    a = pixels(Image.open(deep/'cat'/'1.png')).copy()
    a[5,7] = 65535
    Image.fromarray(a).save(deep/'cat'/'1.png')
    t = target(deep, size=32)
    assert t.report.range == (0, 4095)
    assert any(o == 'single pixels of 1 picture, such as 1.png (65,535), are brighter than 4,095 and became 255'
               for o in t.report.notes)
    x, b = (read_pictures([d/'cat'/'1.png'], 32, top=top)[0][0,0].astype(int) for d,top in ((deep, 4095), (plain, 255)))
    assert x[5,7] == 255 and (x != b).sum() == 1 # All other pixels are what they were

def test_a_few_pictures_that_alone_need_a_range_are_named(tmp_path): # I2
    deep, _ = deep_folder(tmp_path, n=12)
    assert not any('alone' in o for o in target(deep, size=32).report.notes)
    Image.fromarray(pixels(Image.open(deep/'cat'/'1.png'))*16).save(deep/'cat'/'1.png')
    t = target(deep, size=32)
    assert t.report.range == (0, 65535)
    assert any('1 picture alone uses this range, such as 1.png; the others end at 4,095' in o for o in t.report.notes)

def test_predict_reads_with_the_range_of_training(tmp_path):
    deep, _ = deep_folder(tmp_path)
    t = target(deep, size=32)
    dls = t.dls(device='cpu', augment=False)
    x = dls.test_dl([t.valid.paths[0]]).one_batch()[0]
    assert (x[0]*255).round().byte().equal(t.valid.x[0])

def test_16_bit_tiff_in_colour(tmp_path):
    a = np.random.RandomState(0).randint(0, 4096, (9,7,3)).astype(np.uint16)
    (tmp_path/'a.tif').write_bytes(colour_tiff(a))
    assert value_range([tmp_path/'a.tif'])[:2] == (4095, 1) and value_range([tmp_path/'a.tif'])[2] >= 3500
    assert (pixels(read_picture(tmp_path/'a.tif', top=4095)) == a >> 4).all()
    assert (pixels(read_picture(tmp_path/'a.tif')) == a >> 8).all()

def test_16_bits_with_transparency(tmp_path):
    a = np.random.RandomState(0).randint(0, 4096, (9,7,4)).astype(np.uint16)
    a[...,3] = 65535; a[0,0,3] = 0
    (tmp_path/'a.png').write_bytes(colour_png(a))
    p = pixels(read_picture(tmp_path/'a.png', top=4095))
    assert (p[1:] == a[1:,:,:3] >> 4).all() and (p[0,0] == 255).all()

def test_bands_and_signs_have_sentences_of_their_own(tmp_path): # I2
    (tmp_path/'bands.tif').write_bytes(colour_tiff(np.zeros((4,5,7), np.uint16)))
    with pytest.raises(Unreadable, match='a TIFF of 7 bands: save three'): read_picture(tmp_path/'bands.tif')
    with pytest.raises(Unreadable, match='7 bands'): read_picture((tmp_path/'bands.tif').read_bytes())
    Image.fromarray(np.full((4,4), -1000, np.int32)).save(tmp_path/'ct.tif')
    with pytest.raises(Unreadable, match='pixels below 0'): read_picture(tmp_path/'ct.tif')

def test_no_contrast_is_said(tmp_path): # I2
    root = folder(tmp_path)
    Image.new('L', (40,40), 70).save(root/'train'/'cat'/'flat.png')
    said = str(target(root, size=32).report)
    assert '1 picture has almost no contrast' in said and 'flat.png' in said

# Transparency, long pictures, one picture under two labels

def icon(seed, colour=(255,255,255)):
    a = np.zeros((32,32,4), np.uint8)
    a[...,:3] = colour
    a[...,3] = np.asarray(scene(seed, (32,32)).convert('L'))
    return Image.fromarray(a)

def test_white_on_transparent_is_seen(tmp_path): # I17
    for c in ('cat','dog'):
        for i in range(8):
            (tmp_path/c).mkdir(exist_ok=True)
            icon(i + 50*(c == 'dog'), (255,)*3 if i < 6 else (0,60,200)).save(tmp_path/c/f'{i}.png')
    t = target(tmp_path, size=32)
    assert '12 transparent pictures laid on black' in str(t.report) and not t.report.copies and not t.report.conflicts
    assert min(int(o.max()) - int(o.min()) for o in t.train.x) > 100
    dark = pixels(read_picture(tmp_path/'cat'/'7.png')) # What shows on white stays on white
    a = pixels(Image.open(tmp_path/'cat'/'7.png'))
    assert abs(dark[...,0].astype(int) - (255 - a[...,3])).max() <= 1

def long_picture(colour):
    a = np.full((40,160,3), 120, np.uint8); a[:,:30] = a[:,130:] = colour
    return Image.fromarray(a)

def test_fit_keeps_the_ends(tmp_path): # I13
    im = long_picture((250,0,0))
    red = {f: ((p := pixels(fit_picture(im, 32, f)).astype(int))[...,0] - p[...,1] > 100).mean()
           for f in ('crop','squish','pad')}
    assert red['crop'] == 0 and red['squish'] > .3 and .05 < red['pad'] < .15, red
    for c in ('cat','dog'):
        for i in range(8):
            (tmp_path/c).mkdir(exist_ok=True)
            long_picture((250, 10*i, 100*(c == 'dog'))).save(tmp_path/c/f'{i}.png')
    assert 'leaves more than a third of 16 long pictures away' in str(target(tmp_path, size=32).report)
    t = target(tmp_path, size=32, fit='squish')
    assert 'long' not in str(t.report) and t.report.fit == 'squish'
    assert t.pixel_hash != target(tmp_path, size=32).pixel_hash
    x = t.dls(device='cpu', augment=False).test_dl([t.valid.paths[0]]).one_batch()[0]
    assert (x[0]*255).round().byte().equal(t.valid.x[0])
    with pytest.raises(BadInput, match="did you mean 'squish'"): target(tmp_path, fit='squash')

def test_one_picture_under_two_labels_comes_first(tmp_path): # I12
    root = folder(tmp_path)
    (root/'train'/'cat'/'again.png').write_bytes((root/'train'/'dog'/'2.png').read_bytes())
    Image.open(root/'train'/'dog'/'3.png').resize((96,80)).save(root/'test'/'cat'/'near.jpg', quality=60)
    t = target(root, size=64)
    assert t.report.conflicts == [('train/cat/again.png','cat','train/dog/2.png','dog','same'),
                                  ('train/dog/3.png','dog','test/cat/near.jpg','cat','near')]
    said = t.report.lines()
    assert said[0].startswith('under two labels, 1 pair of one picture and 1 pair of nearly one picture')
    assert 'again.png (cat) = train/dog/2.png (dog)' in said[1]
    assert (t.report.to_dict()['conflicts'][0]
            == dict(file='train/cat/again.png', label='cat', other='train/dog/2.png', other_label='dog', kind='same'))
    assert target(folder(tmp_path/'b', seed=500), size=64).report.conflicts == []

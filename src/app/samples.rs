//! Small, valid files of the kinds that smpfs is made for: a DICOM image, a NIfTI volume, a PNG picture. Pure code, no IO.
//!
//! The image in all of them is a phantom: a body, two lungs, a spine, drawn as ellipses. No patient is in it.

/// Pixels along an edge of the DICOM and PNG images.
const EDGE: u16 = 128;
/// Voxels along an edge of the NIfTI volume.
const VOXELS: i16 = 32;

/// Brightness of the phantom at a point of the unit square, 0 to 1000.
fn phantom(x: f64, y: f64) -> u16 {
    let inside = |cx: f64, cy: f64, rx: f64, ry: f64| ((x - cx) / rx).powi(2) + ((y - cy) / ry).powi(2) <= 1.0;
    match () {
        () if inside(0.5, 0.76, 0.07, 0.07) => 1000,
        () if inside(0.33, 0.48, 0.13, 0.22) || inside(0.67, 0.48, 0.13, 0.22) => 150,
        () if inside(0.5, 0.5, 0.43, 0.36) => 550,
        () => 0,
    }
}

fn pixels(edge: u16) -> impl Iterator<Item = u16> {
    let at = move |i: u16| (f64::from(i) + 0.5) / f64::from(edge);
    (0..edge).flat_map(move |row| (0..edge).map(move |column| phantom(at(column), at(row))))
}

/// A DICOM file (PS3.10): explicit VR little endian, secondary capture, 16-bit monochrome.
pub fn dicom() -> Vec<u8> {
    const SECONDARY_CAPTURE: &str = "1.2.840.10008.5.1.4.1.1.7";
    const EXPLICIT_LITTLE_ENDIAN: &str = "1.2.840.10008.1.2.1";
    // 2.25 is the root for identifiers made from a UUID; these are of the nil UUID plus a counter.
    let (study, series, instance) = ("2.25.1", "2.25.2", "2.25.3");

    let mut meta = Vec::new();
    long(&mut meta, (0x0002, 0x0001), b"OB", &[0, 1]);
    text(&mut meta, (0x0002, 0x0002), b"UI", SECONDARY_CAPTURE);
    text(&mut meta, (0x0002, 0x0003), b"UI", instance);
    text(&mut meta, (0x0002, 0x0010), b"UI", EXPLICIT_LITTLE_ENDIAN);
    text(&mut meta, (0x0002, 0x0012), b"UI", "2.25.4");

    let mut file = vec![0; 128];
    file.extend(b"DICM");
    short(&mut file, (0x0002, 0x0000), b"UL", &(meta.len() as u32).to_le_bytes());
    file.extend(meta);
    text(&mut file, (0x0008, 0x0016), b"UI", SECONDARY_CAPTURE);
    text(&mut file, (0x0008, 0x0018), b"UI", instance);
    text(&mut file, (0x0008, 0x0020), b"DA", "20260101");
    text(&mut file, (0x0008, 0x0030), b"TM", "120000");
    text(&mut file, (0x0008, 0x0050), b"SH", "");
    text(&mut file, (0x0008, 0x0060), b"CS", "OT");
    text(&mut file, (0x0008, 0x0064), b"CS", "SYN");
    text(&mut file, (0x0008, 0x0090), b"PN", "");
    text(&mut file, (0x0010, 0x0010), b"PN", "Phantom^Quickstart");
    text(&mut file, (0x0010, 0x0020), b"LO", "SMPFS-0001");
    text(&mut file, (0x0010, 0x0030), b"DA", "");
    text(&mut file, (0x0010, 0x0040), b"CS", "O");
    text(&mut file, (0x0020, 0x000D), b"UI", study);
    text(&mut file, (0x0020, 0x000E), b"UI", series);
    text(&mut file, (0x0020, 0x0010), b"SH", "1");
    text(&mut file, (0x0020, 0x0011), b"IS", "1");
    text(&mut file, (0x0020, 0x0013), b"IS", "1");
    let number = |file: &mut Vec<u8>, tag, n: u16| short(file, tag, b"US", &n.to_le_bytes());
    number(&mut file, (0x0028, 0x0002), 1);
    text(&mut file, (0x0028, 0x0004), b"CS", "MONOCHROME2");
    for (element, n) in [(0x0010, EDGE), (0x0011, EDGE), (0x0100, 16), (0x0101, 16), (0x0102, 15), (0x0103, 0)] {
        number(&mut file, (0x0028, element), n);
    }
    let image: Vec<u8> = pixels(EDGE).flat_map(u16::to_le_bytes).collect();
    long(&mut file, (0x7FE0, 0x0010), b"OW", &image);
    file
}

/// A data element with a 16-bit length.
fn short(out: &mut Vec<u8>, tag: (u16, u16), vr: &[u8; 2], value: &[u8]) {
    out.extend(tag.0.to_le_bytes());
    out.extend(tag.1.to_le_bytes());
    out.extend(vr);
    out.extend((value.len() as u16).to_le_bytes());
    out.extend(value);
}

/// A data element with a 32-bit length.
fn long(out: &mut Vec<u8>, tag: (u16, u16), vr: &[u8; 2], value: &[u8]) {
    out.extend(tag.0.to_le_bytes());
    out.extend(tag.1.to_le_bytes());
    out.extend(vr);
    out.extend([0, 0]);
    out.extend((value.len() as u32).to_le_bytes());
    out.extend(value);
}

/// Text, padded to an even length: identifiers with NUL, all else with a space.
fn text(out: &mut Vec<u8>, tag: (u16, u16), vr: &[u8; 2], value: &str) {
    let mut bytes = value.as_bytes().to_vec();
    if bytes.len() % 2 == 1 {
        bytes.push(if vr == b"UI" { 0 } else { b' ' });
    }
    short(out, tag, vr, &bytes);
}

/// A NIfTI-1 file (.nii): a header of 348 bytes, four of extension flags, 16-bit voxels of 2 mm.
pub fn nifti() -> Vec<u8> {
    const HEADER: usize = 348;
    const OFFSET: usize = 352;
    let mut h = vec![0u8; OFFSET];
    let mut put = |at: usize, bytes: &[u8]| h[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(HEADER as i32).to_le_bytes());
    for (i, n) in [3, VOXELS, VOXELS, VOXELS, 1, 1, 1, 1].into_iter().enumerate() {
        put(40 + 2 * i, &n.to_le_bytes());
    }
    put(70, &4i16.to_le_bytes()); // datatype: signed short
    put(72, &16i16.to_le_bytes()); // bits per voxel
    for (i, mm) in [1.0f32, 2.0, 2.0, 2.0].into_iter().enumerate() {
        put(76 + 4 * i, &mm.to_le_bytes());
    }
    put(108, &(OFFSET as f32).to_le_bytes());
    put(112, &1.0f32.to_le_bytes()); // slope: values as they are
    put(123, &[2]); // millimetres
    put(148, b"smpfs quickstart phantom");
    put(254, &1i16.to_le_bytes()); // sform: scanner coordinates
    for (row, at) in [280, 296, 312].into_iter().enumerate() {
        put(at + 4 * row, &2.0f32.to_le_bytes());
        put(at + 12, &(-f32::from(VOXELS)).to_le_bytes());
    }
    put(344, b"n+1\0");
    let edge = f64::from(VOXELS);
    for z in 0..VOXELS {
        // A body that tapers towards both ends.
        let scale = 1.0 + ((f64::from(z) + 0.5) / edge - 0.5).abs() * 2.0;
        for y in 0..VOXELS {
            for x in 0..VOXELS {
                let at = |i: i16| ((f64::from(i) + 0.5) / edge - 0.5) * scale + 0.5;
                h.extend(phantom(at(x), at(y)).to_le_bytes());
            }
        }
    }
    h
}

/// A PNG picture: 8-bit grey, stored without compression (RFC 1951, block type 0).
pub fn png() -> Vec<u8> {
    let mut raw = Vec::new();
    let grey: Vec<u8> = pixels(EDGE).map(|v| (v / 4).min(255) as u8).collect();
    for row in grey.chunks(usize::from(EDGE)) {
        raw.push(0); // no filter
        raw.extend(row);
    }
    let mut zlib = vec![0x78, 0x01];
    let blocks: Vec<&[u8]> = raw.chunks(0xFFFF).collect();
    for (i, block) in blocks.iter().enumerate() {
        zlib.push(u8::from(i + 1 == blocks.len()));
        zlib.extend((block.len() as u16).to_le_bytes());
        zlib.extend((!(block.len() as u16)).to_le_bytes());
        zlib.extend(*block);
    }
    zlib.extend(adler32(&raw).to_be_bytes());

    let mut size = Vec::new();
    size.extend(u32::from(EDGE).to_be_bytes());
    size.extend(u32::from(EDGE).to_be_bytes());
    size.extend([8, 0, 0, 0, 0]);
    let mut file = vec![0x89, b'P', b'N', b'G', 0x0D, 0x0A, 0x1A, 0x0A];
    for (kind, data) in [(b"IHDR", &size), (b"IDAT", &zlib), (b"IEND", &vec![])] {
        let start = file.len() + 4;
        file.extend((data.len() as u32).to_be_bytes());
        file.extend(kind);
        file.extend(data);
        let check = crc32(&file[start..]);
        file.extend(check.to_be_bytes());
    }
    file
}

/// RFC 1950.
fn adler32(data: &[u8]) -> u32 {
    let (a, b) = data.iter().fold((1u32, 0u32), |(a, b), &x| {
        let a = (a + u32::from(x)) % 65_521;
        (a, (b + a) % 65_521)
    });
    b << 16 | a
}

/// CRC-32 as PNG uses it (ISO 3309).
fn crc32(data: &[u8]) -> u32 {
    !data
        .iter()
        .fold(!0u32, |crc, &x| (0..8).fold(crc ^ u32::from(x), |c, _| if c & 1 == 1 { 0xEDB8_8320 ^ (c >> 1) } else { c >> 1 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u16le(b: &[u8], at: usize) -> u16 {
        u16::from_le_bytes([b[at], b[at + 1]])
    }

    fn u32le(b: &[u8], at: usize) -> u32 {
        u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
    }

    /// Walks the data elements as any reader does: tags ascend, lengths are even and end exactly at the end of the file.
    #[test]
    fn the_dicom_file_is_well_formed() {
        let f = dicom();
        assert_eq!(&f[128..132], b"DICM");
        let (mut at, mut last, mut tags) = (132, (0, 0), Vec::new());
        while at < f.len() {
            let tag = (u16le(&f, at), u16le(&f, at + 2));
            let (len, head) = match &f[at + 4..at + 6] {
                b"OB" | b"OW" => (u32le(&f, at + 8) as usize, 12),
                _ => (usize::from(u16le(&f, at + 6)), 8),
            };
            assert!(tag > last, "{tag:x?} after {last:x?}");
            assert_eq!(len % 2, 0, "{tag:x?}");
            tags.push((tag, at + head, len));
            (last, at) = (tag, at + head + len);
        }
        assert_eq!(at, f.len());
        let (_, start, group_len) = tags[0];
        assert_eq!(group_len, 4);
        let end_of_meta = start + 4 + u32le(&f, start) as usize;
        let (first_after, value, _) = *tags.iter().find(|(t, _, _)| t.0 > 2).unwrap();
        assert_eq!((first_after, value - 8), ((0x0008, 0x0016), end_of_meta));
        assert_eq!(tags.last().map(|(t, _, len)| (*t, *len)), Some(((0x7FE0, 0x0010), 128 * 128 * 2)));
    }

    #[test]
    fn the_nifti_file_is_well_formed() {
        let f = nifti();
        assert_eq!(u32le(&f, 0), 348);
        assert_eq!(&f[344..348], b"n+1\0");
        let dims: Vec<u16> = (0..4).map(|i| u16le(&f, 40 + 2 * i)).collect();
        assert_eq!(dims, [3, 32, 32, 32]);
        assert_eq!(f.len(), 352 + 32 * 32 * 32 * 2);
        let middle = 352 + 2 * (16 * 32 * 32 + 8 * 32 + 16);
        assert!(u16le(&f, middle) > 0);
    }

    #[test]
    fn the_png_file_is_well_formed() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(adler32(b"Wikipedia"), 0x11E6_0398);
        let f = png();
        let (mut at, mut kinds) = (8, Vec::new());
        while at < f.len() {
            let len = u32::from_be_bytes(f[at..at + 4].try_into().unwrap()) as usize;
            let check = u32::from_be_bytes(f[at + 8 + len..at + 12 + len].try_into().unwrap());
            assert_eq!(check, crc32(&f[at + 4..at + 8 + len]));
            kinds.push(f[at + 4..at + 8].to_vec());
            at += 12 + len;
        }
        assert_eq!((at, kinds), (f.len(), vec![b"IHDR".to_vec(), b"IDAT".to_vec(), b"IEND".to_vec()]));
    }
}

//! One small face for both peer libraries: byte strings in, byte strings out.
//! OpenMLS sits in `om`, mls-rs in `mr`.
#![allow(dead_code)]

pub mod mr;
pub mod om;

pub type R<T> = Result<T, String>;

pub fn er<E: std::fmt::Debug>(what: &'static str) -> impl Fn(E) -> String {
    move |e| format!("{what}: {e:?}")
}

/// An extension type that both peers list in their capabilities, so that
/// group_context_extensions proposals can be tried out.
pub const TEST_EXTENSION: u16 = 0xF042;

/// The group context extension of rooms (docs/events.md); both list it, so that
/// they can be members of a room's group.
pub const POLICY_EXTENSION: u16 = 0xF6D1;

#[derive(Clone, Copy, Debug)]
pub struct Opts {
    /// send proposals and commits as PrivateMessage
    pub private: bool,
    /// put the ratchet tree into the GroupInfo of Welcomes
    pub tree_ext: bool,
    /// OpenMLS: for how many past epochs messages can still be read (its own
    /// default is 0). mls-rs keeps up to 3 past epochs in storage.
    pub past_epochs: usize,
    /// the identity ends with the signature key, as a vector: the credential of
    /// a Matrix device (MSC4256)
    pub with_key: bool,
}

impl Opts {
    /// The identity of a credential with the given signature key.
    pub fn identity(&self, name: &[u8], key: &[u8]) -> Vec<u8> {
        let mut id = name.to_vec();
        if self.with_key {
            if key.len() >= 64 {
                id.push(0x40 | (key.len() >> 8) as u8);
            }
            id.push(key.len() as u8);
            id.extend_from_slice(key);
        }
        id
    }
}

#[derive(Default, Clone, Debug)]
pub struct CommitReq {
    pub adds: Vec<Vec<u8>>,
    pub removes: Vec<u32>,
    /// ask for an update path even where the proposals need none
    pub path: bool,
    /// include pending proposals (received or sent by this member)
    pub pending: bool,
    pub external_psks: Vec<Vec<u8>>,
    pub resumption_psks: Vec<u64>,
    pub extensions: Option<Vec<(u16, Vec<u8>)>>,
    /// ReInit to (new group id, suite)
    pub reinit: Option<(Vec<u8>, u16)>,
    pub aad: Vec<u8>,
}

#[derive(Default, Clone, Debug)]
pub struct CommitRes {
    pub commit: Vec<u8>,
    pub welcome: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
pub enum Propose {
    Add(Vec<u8>),
    Update,
    Remove(u32),
    ExternalPsk(Vec<u8>),
    ResumptionPsk(u64),
    Extensions(Vec<(u16, Vec<u8>)>),
    ReInit(Vec<u8>, u16),
    SelfRemove,
}

#[derive(Clone, Debug)]
pub enum Processed {
    Application { data: Vec<u8>, aad: Vec<u8>, sender: Option<u32> },
    Proposal { what: String },
    Commit { epoch: u64, active: bool, what: String },
    Other(String),
}

#[derive(Clone, Debug)]
pub struct MemberInfo {
    pub index: u32,
    pub identity: Vec<u8>,
    pub signature_key: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct State {
    pub group_id: Vec<u8>,
    pub epoch: u64,
    pub suite: u16,
    pub epoch_authenticator: Vec<u8>,
    pub tree_hash: Vec<u8>,
    pub confirmed_transcript_hash: Vec<u8>,
    pub own_index: u32,
    pub active: bool,
    pub extensions: Vec<(u16, Vec<u8>)>,
    pub members: Vec<MemberInfo>,
}

pub trait Client {
    fn key_package(&mut self) -> R<Vec<u8>>;
    fn create(&mut self, gid: &[u8], exts: &[(u16, Vec<u8>)]) -> R<Box<dyn Member>>;
    fn join(&mut self, welcome: &[u8], tree: Option<&[u8]>) -> R<Box<dyn Member>>;
    fn external_join(&mut self, gi: &[u8], tree: Option<&[u8]>, resync: Option<u32>, psks: &[Vec<u8>])
        -> R<(Box<dyn Member>, Vec<u8>)>;
    fn load(&mut self, gid: &[u8]) -> R<Box<dyn Member>>;
    fn add_psk(&mut self, id: &[u8], secret: &[u8]) -> R<()>;
    fn stored_bytes(&self) -> usize;
    /// mls-rs: what it wrote for prior epochs, on top of the group state
    fn stored_epoch_bytes(&self) -> usize {
        0
    }
    fn signature_key(&self) -> Vec<u8>;
}

pub trait Member {
    fn commit(&mut self, req: &CommitReq) -> R<CommitRes>;
    fn merge(&mut self) -> R<()>;
    fn clear(&mut self) -> R<()>;
    fn clear_proposals(&mut self) -> R<()>;
    fn propose(&mut self, p: &Propose, aad: &[u8]) -> R<Vec<u8>>;
    fn process(&mut self, msg: &[u8]) -> R<Processed>;
    fn encrypt(&mut self, data: &[u8], aad: &[u8]) -> R<Vec<u8>>;
    fn group_info(&self, with_tree: bool) -> R<Vec<u8>>;
    fn tree(&self) -> R<Vec<u8>>;
    fn export(&self, label: &str, context: &[u8], len: usize) -> R<Vec<u8>>;
    fn state(&self) -> R<State>;
    fn epoch(&self) -> u64;
    fn find(&self, identity: &[u8]) -> Option<u32>;
    /// write the group to storage (OpenMLS does so by itself in each operation)
    fn save(&mut self) -> R<()>;
    fn set_opts(&mut self, o: Opts) -> R<()>;
    /// after a ReInit: what makes or joins the next group
    fn reinit(self: Box<Self>) -> R<Box<dyn Successor>>;
}

/// The way from a group that was closed by a ReInit to the one that it names.
pub trait Successor {
    fn key_package(&self) -> R<Vec<u8>>;
    /// makes the group with these key packages, and their Welcome
    fn create(self: Box<Self>, key_packages: &[Vec<u8>]) -> R<(Box<dyn Member>, Vec<u8>)>;
    fn join(self: Box<Self>, welcome: &[u8], tree: Option<&[u8]>) -> R<Box<dyn Member>>;
}

pub trait Observer {
    fn process(&mut self, msg: &[u8]) -> R<u64>;
}

pub trait Library {
    fn name(&self) -> &'static str;
    fn version(&self) -> &'static str;
    fn crypto(&self) -> String;
    fn supports(&self, suite: u16) -> bool;
    fn client(&self, name: &[u8], suite: u16, o: Opts) -> R<Box<dyn Client>>;
    fn observe(&self, suite: u16, gi: &[u8], tree: Option<&[u8]>) -> R<Box<dyn Observer>>;
}

/// `lib` is "openmls" or "mls-rs"; `crypto` "" takes the default of the peer.
pub fn library(lib: &str, crypto: &str) -> R<Box<dyn Library>> {
    match (lib, crypto) {
        ("openmls", "" | "rustcrypto") => Ok(Box::new(om::Om::<openmls_rust_crypto::OpenMlsRustCrypto>::new(
            "openmls_rust_crypto 0.6.0",
        ))),
        ("mls-rs", "" | "awslc") => Ok(Box::new(mr::Mr {
            crypto: mls_rs_crypto_awslc::AwsLcCryptoProvider::default(),
            label: "mls-rs-crypto-awslc 0.27.0",
        })),
        _ => Err(format!("no such peer: {lib} with {crypto:?}")),
    }
}

//! Dense numbers for names: a uid or a name is looked up once per event, everything after that is by number.

use std::hash::BuildHasher as _;
use std::marker::PhantomData;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

/// A number that stands for a name of one kind.
pub(crate) trait Key: Copy + Ord {
    /// The number of a place.
    fn new(place: usize) -> Self;
    /// The place of a number.
    fn place(self) -> usize;
}

macro_rules! keys {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) struct $name(u32);

        impl Key for $name {
            fn new(place: usize) -> Self {
                // Four billion objects do not fit in any cluster; past them nothing is found, and nothing is wrong.
                Self(u32::try_from(place).unwrap_or(u32::MAX))
            }

            fn place(self) -> usize {
                self.0 as usize
            }
        }
    )*};
}

keys! {
    /// A node, by its name.
    NodeId
    /// A pod, by its uid.
    PodId
    /// A VM, by its uid.
    VmId
}

/// Things by number and by name. Numbers of what was removed are given again.
///
/// A name is kept once, in a row of its own: a look-up touches the index and the row, and not the thing, which is large.
#[derive(Debug, Clone)]
pub(crate) struct Slab<K, T> {
    /// By number; empty where nothing is.
    names: Vec<Name>,
    items: Vec<Option<T>>,
    free: Vec<u32>,
    /// Only looked up, never walked: the order of a hash table decides nothing.
    index: HashTable<u32>,
    kind: PhantomData<K>,
}

impl<K, T> Default for Slab<K, T> {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            items: Vec::new(),
            free: Vec::new(),
            index: HashTable::new(),
            kind: PhantomData,
        }
    }
}

fn hash(name: &[u8]) -> u64 {
    // The seed is fixed, since a brain asks nobody for random numbers.
    const STATE: FixedState = FixedState::with_seed(0);
    STATE.hash_one(name)
}

/// So many bytes stand in the row itself: any uid, and nearly every node's name.
const SHORT: usize = 46;

/// A name. Names all over the heap would cost a look-up more than all the rest of it.
#[derive(Debug, Clone)]
enum Name {
    Short { len: u8, bytes: [u8; SHORT] },
    Long(Box<str>),
}

impl Name {
    fn new(text: &str) -> Self {
        let mut bytes = [0; SHORT];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(start), Ok(len)) => {
                start.copy_from_slice(text.as_bytes());
                Self::Short { len, bytes }
            }
            _ => Self::Long(text.into()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Self::Long(text) => text.as_bytes(),
        }
    }

    fn text(&self) -> &str {
        // It was a text when it came.
        std::str::from_utf8(self.bytes()).unwrap_or_default()
    }
}

/// The name at a place.
fn named(names: &[Name], place: u32) -> &[u8] {
    names.get(place as usize).map_or(&[], Name::bytes)
}

impl<K: Key, T> Slab<K, T> {
    pub(crate) fn find(&self, name: &str) -> Option<K> {
        let name = name.as_bytes();
        let same = |place: &u32| named(&self.names, *place) == name;
        self.index.find(hash(name), same).map(|place| K::new(*place as usize))
    }

    pub(crate) fn get(&self, key: K) -> Option<&T> {
        self.items.get(key.place())?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, key: K) -> Option<&mut T> {
        self.items.get_mut(key.place())?.as_mut()
    }

    /// Empty for a number that stands for nothing.
    pub(crate) fn name(&self, key: K) -> &str {
        self.names.get(key.place()).map_or("", Name::text)
    }

    /// The number of a name; what is not there yet is made.
    pub(crate) fn find_or_insert(&mut self, name: &str, make: impl FnOnce(K) -> T) -> K {
        if let Some(key) = self.find(name) {
            return key;
        }
        let next = u32::try_from(self.items.len()).unwrap_or(u32::MAX);
        let place = self.free.pop().unwrap_or(next);
        let key = K::new(place as usize);
        let item = Some(make(key));
        match (self.names.get_mut(key.place()), self.items.get_mut(key.place())) {
            (Some(free), Some(slot)) => (*free, *slot) = (Name::new(name), item),
            _ => {
                self.names.push(Name::new(name));
                self.items.push(item);
            }
        }
        let names = &self.names;
        self.index.insert_unique(hash(name.as_bytes()), place, |place| hash(named(names, *place)));
        key
    }

    pub(crate) fn remove(&mut self, key: K) -> Option<T> {
        let item = self.items.get_mut(key.place())?.take()?;
        let name = std::mem::replace(self.names.get_mut(key.place())?, Name::new(""));
        let here = |place: &u32| *place as usize == key.place();
        if let Ok(entry) = self.index.find_entry(hash(name.bytes()), here) {
            let (place, _) = entry.remove();
            self.free.push(place);
        }
        Some(item)
    }

    /// Everything, in the order of numbers: it depends on what was there before, so no decision may depend on it.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (K, &str, &T)> {
        let named = self.names.iter().zip(&self.items).enumerate();
        named.filter_map(|(place, (name, item))| Some((K::new(place), name.text(), item.as_ref()?)))
    }

    /// As [`Self::iter`].
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.items.iter_mut().flatten()
    }

    /// Those that `wanted` picks, in the order of their names.
    pub(crate) fn by_name(&self, wanted: impl Fn(&str, &T) -> bool) -> Vec<K> {
        let all = self.iter().filter(|(_, name, item)| wanted(name, item));
        let mut keys: Vec<K> = all.map(|(key, ..)| key).collect();
        self.sort(&mut keys);
        keys
    }

    /// Sorts by names.
    pub(crate) fn sort(&self, keys: &mut [K]) {
        if keys.len() > 1 {
            let name = |key: K| self.names.get(key.place()).map_or(&[][..], Name::bytes);
            keys.sort_by(|one, other| name(*one).cmp(name(*other)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_length_are_found_and_ordered() {
        let mut slab = Slab::<NodeId, usize>::default();
        let lengths = [0, 1, SHORT - 1, SHORT, SHORT + 1, 300];
        for len in lengths.into_iter().rev() {
            slab.find_or_insert(&"x".repeat(len), |_| len);
        }
        for len in lengths {
            let key = slab.find(&"x".repeat(len)).unwrap();
            assert_eq!((slab.name(key).len(), slab.get(key)), (len, Some(&len)));
        }
        let sorted: Vec<usize> =
            slab.by_name(|_, _| true).iter().map(|key| slab.name(*key).len()).collect();
        assert_eq!(sorted, lengths);
        assert_eq!(slab.find(&"x".repeat(SHORT + 2)), None);
    }

    #[test]
    fn numbers_are_given_again_and_names_decide_the_order() {
        let mut slab = Slab::<PodId, u32>::default();
        let b = slab.find_or_insert("b", |_| 1);
        let a = slab.find_or_insert("a", |_| 2);
        assert_eq!(slab.find_or_insert("b", |_| 9), b);
        assert_eq!(slab.by_name(|_, _| true), [a, b]);
        assert_eq!((slab.remove(b), slab.remove(b), slab.find("b")), (Some(1), None, None));
        let c = slab.find_or_insert("c", |_| 3);
        assert_eq!(c, b);
        assert_eq!(
            (slab.name(c), slab.get(c), slab.by_name(|_, _| true)),
            ("c", Some(&3), vec![a, c])
        );
    }
}

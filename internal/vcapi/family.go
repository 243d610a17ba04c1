package vcapi

// family is a fault's base type, where that decides how the fault is treated.
//
// Source: VI JSON, the data objects that extend InvalidState, CustomizationFault, GuestOperationsFault and
// HostCommunication. A table in the place of govmomi's types, because those make a third of the program's size; a test
// holds it against them.
type family int

const (
	noFamily family = iota
	invalidState
	customizationFault
	guestOperationsFault
	hostCommunication
)

var families = map[string]family{
	"CannotPowerOffVmInCluster":  invalidState,
	"EncryptionKeyRequired":      invalidState,
	"InvalidDatastoreState":      invalidState,
	"InvalidHostConnectionState": invalidState,
	"InvalidHostState":           invalidState,
	"InvalidPowerState":          invalidState,
	"InvalidState":               invalidState,
	"InvalidVmState":             invalidState,
	"MksConnectionLimitReached":  invalidState,
	"NoActiveHostInCluster":      invalidState,
	"OvfConsumerPowerOnFault":    invalidState,
	"QuestionPending":            invalidState,
	"VmPowerOnDisabled":          invalidState,

	"CannotDecryptPasswords":       customizationFault,
	"CustomizationFault":           customizationFault,
	"CustomizationPending":         customizationFault,
	"IpHostnameGeneratorError":     customizationFault,
	"LinuxVolumeNotClean":          customizationFault,
	"MissingLinuxCustResources":    customizationFault,
	"MissingWindowsCustResources":  customizationFault,
	"MountError":                   customizationFault,
	"NicSettingMismatch":           customizationFault,
	"NoDisksToCustomize":           customizationFault,
	"UncustomizableGuest":          customizationFault,
	"UnexpectedCustomizationFault": customizationFault,
	"VolumeEditorError":            customizationFault,

	"GuestAuthenticationChallenge":   guestOperationsFault,
	"GuestComponentsOutOfDate":       guestOperationsFault,
	"GuestMultipleMappings":          guestOperationsFault,
	"GuestOperationsFault":           guestOperationsFault,
	"GuestOperationsUnavailable":     guestOperationsFault,
	"GuestPermissionDenied":          guestOperationsFault,
	"GuestProcessNotFound":           guestOperationsFault,
	"GuestRegistryFault":             guestOperationsFault,
	"GuestRegistryKeyAlreadyExists":  guestOperationsFault,
	"GuestRegistryKeyFault":          guestOperationsFault,
	"GuestRegistryKeyHasSubkeys":     guestOperationsFault,
	"GuestRegistryKeyInvalid":        guestOperationsFault,
	"GuestRegistryKeyParentVolatile": guestOperationsFault,
	"GuestRegistryValueFault":        guestOperationsFault,
	"GuestRegistryValueNotFound":     guestOperationsFault,
	"InvalidGuestLogin":              guestOperationsFault,
	"OperationDisabledByGuest":       guestOperationsFault,
	"OperationNotSupportedByGuest":   guestOperationsFault,
	"TooManyGuestLogons":             guestOperationsFault,

	"HostCommunication": hostCommunication,
	"HostNotConnected":  hostCommunication,
	"HostNotReachable":  hostCommunication,
}

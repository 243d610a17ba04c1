package vcsim

import (
	"reflect"

	"github.com/vmware/govmomi/vim25/types"
)

// returns are the types of vcsim's responses by method: govmomi's registry has only requests. A method that is neither
// listed nor named …_Task returns nothing.
var returns = map[string]reflect.Type{
	"AcquireCloneTicket":            reflect.TypeFor[types.AcquireCloneTicketResponse](),
	"AcquireGenericServiceTicket":   reflect.TypeFor[types.AcquireGenericServiceTicketResponse](),
	"CloneSession":                  reflect.TypeFor[types.CloneSessionResponse](),
	"ContinueRetrievePropertiesEx":  reflect.TypeFor[types.ContinueRetrievePropertiesExResponse](),
	"CreateCollectorForEvents":      reflect.TypeFor[types.CreateCollectorForEventsResponse](),
	"CreateCollectorForTasks":       reflect.TypeFor[types.CreateCollectorForTasksResponse](),
	"CreateContainerView":           reflect.TypeFor[types.CreateContainerViewResponse](),
	"CreateFilter":                  reflect.TypeFor[types.CreateFilterResponse](),
	"CreateFolder":                  reflect.TypeFor[types.CreateFolderResponse](),
	"CreateListView":                reflect.TypeFor[types.CreateListViewResponse](),
	"CreatePropertyCollector":       reflect.TypeFor[types.CreatePropertyCollectorResponse](),
	"CurrentTime":                   reflect.TypeFor[types.CurrentTimeResponse](),
	"CustomizationSpecItemToXml":    reflect.TypeFor[types.CustomizationSpecItemToXmlResponse](),
	"DoesCustomizationSpecExist":    reflect.TypeFor[types.DoesCustomizationSpecExistResponse](),
	"FetchUserPrivilegeOnEntities":  reflect.TypeFor[types.FetchUserPrivilegeOnEntitiesResponse](),
	"FindAllByDnsName":              reflect.TypeFor[types.FindAllByDnsNameResponse](),
	"FindAllByIp":                   reflect.TypeFor[types.FindAllByIpResponse](),
	"FindAllByUuid":                 reflect.TypeFor[types.FindAllByUuidResponse](),
	"FindByDnsName":                 reflect.TypeFor[types.FindByDnsNameResponse](),
	"FindByInventoryPath":           reflect.TypeFor[types.FindByInventoryPathResponse](),
	"FindByIp":                      reflect.TypeFor[types.FindByIpResponse](),
	"FindByUuid":                    reflect.TypeFor[types.FindByUuidResponse](),
	"FindChild":                     reflect.TypeFor[types.FindChildResponse](),
	"FindExtension":                 reflect.TypeFor[types.FindExtensionResponse](),
	"GetCustomizationSpec":          reflect.TypeFor[types.GetCustomizationSpecResponse](),
	"HasPrivilegeOnEntities":        reflect.TypeFor[types.HasPrivilegeOnEntitiesResponse](),
	"HasPrivilegeOnEntity":          reflect.TypeFor[types.HasPrivilegeOnEntityResponse](),
	"HasUserPrivilegeOnEntities":    reflect.TypeFor[types.HasUserPrivilegeOnEntitiesResponse](),
	"InitiateFileTransferFromGuest": reflect.TypeFor[types.InitiateFileTransferFromGuestResponse](),
	"Login":                         reflect.TypeFor[types.LoginResponse](),
	"LoginByToken":                  reflect.TypeFor[types.LoginByTokenResponse](),
	"ModifyListView":                reflect.TypeFor[types.ModifyListViewResponse](),
	"QueryConfigOptionDescriptor":   reflect.TypeFor[types.QueryConfigOptionDescriptorResponse](),
	"QueryEvents":                   reflect.TypeFor[types.QueryEventsResponse](),
	"QueryOptions":                  reflect.TypeFor[types.QueryOptionsResponse](),
	"ReadNextEvents":                reflect.TypeFor[types.ReadNextEventsResponse](),
	"ReadNextTasks":                 reflect.TypeFor[types.ReadNextTasksResponse](),
	"ReadPreviousEvents":            reflect.TypeFor[types.ReadPreviousEventsResponse](),
	"ResetListView":                 reflect.TypeFor[types.ResetListViewResponse](),
	"RetrieveEntityPermissions":     reflect.TypeFor[types.RetrieveEntityPermissionsResponse](),
	"RetrieveProperties":            reflect.TypeFor[types.RetrievePropertiesResponse](),
	"RetrievePropertiesEx":          reflect.TypeFor[types.RetrievePropertiesExResponse](),
	"RetrieveServiceContent":        reflect.TypeFor[types.RetrieveServiceContentResponse](),
	"RetrieveUserGroups":            reflect.TypeFor[types.RetrieveUserGroupsResponse](),
	"SessionIsActive":               reflect.TypeFor[types.SessionIsActiveResponse](),
	"WaitForUpdates":                reflect.TypeFor[types.WaitForUpdatesResponse](),
	"WaitForUpdatesEx":              reflect.TypeFor[types.WaitForUpdatesExResponse](),
}
